package org.cededge.demo

import android.app.Activity
import android.content.Intent
import android.media.AudioFormat
import android.media.MediaFormat
import android.net.Uri
import android.widget.Button
import android.widget.ListView
import java.io.File
import java.io.FileNotFoundException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.cededge.demo.audio.SoundFile
import org.cededge.demo.core.Entry
import org.cededge.demo.core.InputError
import org.cededge.demo.core.LiveState
import org.cededge.demo.service.ShareProvider
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.shadows.ShadowMediaExtractor
import org.robolectric.shadows.util.DataSource

/** Files that the app opens, and files that it gives to other apps. Robolectric's decoder hands on the bytes of a track. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [26, 35], qualifiers = "w411dp-h731dp-port-xhdpi")
class FileTest {
    @Before @After fun finishWork() = afterWork()

    private fun bytes(size: Int, fill: ByteBuffer.() -> Unit) = ByteBuffer.allocate(size).order(ByteOrder.nativeOrder()).apply(fill).array()

    private fun pcm(samples: ShortArray, times: Int = 1) = bytes(2 * times * samples.size) { repeat(times) { for (s in samples) putShort(s) } }

    private fun file(name: String, track: ByteArray, rate: Int = 16_000, channels: Int = 1, encoding: Int? = null): Uri {
        val address = Uri.parse("content://files/$name")
        val format = MediaFormat.createAudioFormat("audio/raw", rate, channels)
        if (encoding != null) format.setInteger(MediaFormat.KEY_PCM_ENCODING, encoding)
        ShadowMediaExtractor.addTrack(DataSource.toDataSource(app, address, null), format, track)
        return address
    }

    private fun Activity.press(id: Int) {
        findViewById<Button>(id).performClick()
        afterWork()
    }

    private fun Activity.sent(): Intent? =
        @Suppress("DEPRECATION") shadowOf(this).nextStartedActivity?.getParcelableExtra<Intent>(Intent.EXTRA_INTENT) // its successor needs API 33

    private fun Intent.address() = @Suppress("DEPRECATION") getParcelableExtra<Uri>(Intent.EXTRA_STREAM)!! // as above

    @Test fun aFileOpenedFromAnotherApp() {
        val address = file("dog.wav", pcm(clip))
        val a = launch(Intent(Intent.ACTION_VIEW).setDataAndType(address, "audio/wav")).setup().get()
        afterWork()
        until("it is tagged") { a.text(R.id.status) == app.getString(R.string.file_done, "dog.wav") }
        assertTrue(center.entries.map { it.label }.toString(), center.entries.any { it.label == "Dog" } && center.entries.any { it.label == "Chicken, rooster" })
        assertEquals(clip.size / 16_000.0, LiveState().also(center::fill).seconds, 0.0)
        a.press(R.id.tab_events)
        assertTrue(a.findViewById<Button>(R.id.share).isEnabled)
    }

    @Test fun aFileWithoutSoundIsRefused() {
        val a = launch(Intent(Intent.ACTION_SEND).setType("audio/wav").putExtra(Intent.EXTRA_STREAM, Uri.parse("content://files/none.wav"))).setup().get()
        afterWork()
        until("the app shows what to do") { "choose a sound file" in a.text(R.id.status) }
    }

    @Test fun aFileAddressOfTheAppItselfIsNotOpened() {
        val own = Uri.fromFile(File(app.filesDir, "x.wav"))
        val a = launch(Intent(Intent.ACTION_SEND).setType("audio/wav").putExtra(Intent.EXTRA_STREAM, own)).setup().get()
        afterWork()
        assertEquals(app.getString(R.string.idle), a.text(R.id.status))
    }

    @Test fun aNewFileEndsTheOneBefore() {
        center.openFile(file("long.wav", pcm(clip, times = 40)).toString())
        center.openFile(file("short.wav", pcm(clip)).toString())
        afterWork()
        val dogs = center.entries.count { it.label == "Dog" }
        assertTrue("$dogs dogs; the long file alone has 40", dogs in 1..20)
    }

    /** Half of full scale left, a quarter right, at 48 kHz. */
    private fun steady(sampleBytes: Int, encoding: Int?, put: ByteBuffer.(Double) -> Unit): Float {
        val frames = 4_800
        val address = file("x.wav", bytes(2 * frames * sampleBytes) { repeat(frames) { put(0.5); put(0.25) } }, 48_000, 2, encoding)
        val out = ArrayList<Float>()
        SoundFile(app, address, 16_000).decode({ false }) { samples, n -> for (i in 0 until n) out += samples[i] }
        assertEquals(1_600, out.size)
        return out[800]
    }

    @Test fun everyEncodingGivesTheSameSamples() {
        val found = listOf(
            steady(2, null) { putShort((it * 32_768).toInt().toShort()) },
            steady(4, AudioFormat.ENCODING_PCM_FLOAT) { putFloat(it.toFloat()) },
            steady(1, AudioFormat.ENCODING_PCM_8BIT) { put((128 + it * 128).toInt().toByte()) },
            steady(3, 21) { v -> (v * 8_388_608).toInt().let { put(it.toByte()).put((it shr 8).toByte()).put((it shr 16).toByte()) } },
            steady(4, 22) { putInt((it * 2_147_483_648).toInt()) },
        )
        for (value in found) assertEquals("$found", 0.375f, value, 1e-3f)
    }

    @Test fun whatCannotBeReadIsRefused() {
        val cases = listOf<Pair<String, () -> Uri>>(
            "of an unknown kind" to { file("a.wav", ByteArray(400), encoding = 99) },
            "0 channels" to { file("b.wav", ByteArray(400), channels = 0) },
            "at 0 Hz" to { file("c.wav", ByteArray(400), rate = 0) },
            "at 383999 Hz" to { file("e.wav", ByteArray(400), rate = 383_999) },
            "at 2147483647 Hz" to { file("f.wav", ByteArray(400), rate = Int.MAX_VALUE) },
            "no sound (NaN)" to { file("d.wav", bytes(400) { repeat(100) { putFloat(Float.NaN) } }, encoding = AudioFormat.ENCODING_PCM_FLOAT) },
        )
        for ((words, make) in cases) {
            val e = assertThrows(words, InputError::class.java) { SoundFile(app, make(), 16_000).decode({ false }) { _, _ -> } }
            assertTrue("$words: ${e.message}", words in e.message!! && e.message!!.endsWith("."))
        }
    }

    @Test fun channelsThatCancelEachOtherAreNotSilence() {
        val address = file("x.wav", bytes(4 * 16_000) { repeat(16_000) { i -> putShort((i % 2_000 * 10).toShort()).putShort((-(i % 2_000) * 10).toShort()) } }, channels = 2)
        var top = 0f
        SoundFile(app, address, 16_000).decode({ false }) { samples, n -> for (i in 0 until n) top = maxOf(top, samples[i]) }
        assertEquals(19_990 / 32_768f, top, 0f)
    }

    private fun wavs() = ShareProvider.folder(app).list()!!.filter { it.endsWith(".wav") }

    @Test fun eventsAreSharedAsCsvAndKeptAsSound() {
        center.change(center.settings.copy(keepSound = true))
        aFileOpenedFromAnotherApp()
        val a = launch().setup().get()
        a.press(R.id.tab_events)
        a.press(R.id.share)
        val sent = a.sent()!!
        assertTrue(sent.flags and Intent.FLAG_GRANT_READ_URI_PERMISSION != 0)
        val provider = Robolectric.buildContentProvider(ShareProvider::class.java).create("org.cededge.demo.share").get()
        assertTrue(File(app.cacheDir, "share/events.csv").readText().lines()[1].contains("\""))
        provider.openFile(sent.address(), "r").close()
        val sound = center.entries.first { it.label == "Dog" }.sound!!
        val rows = a.findViewById<ListView>(R.id.event_list)
        val tapped = (0 until rows.count).first { (rows.getItemAtPosition(it) as Entry).sound == sound }
        rows.performItemClick(null, tapped, rows.getItemIdAtPosition(tapped))
        val wav = a.sent()!!
        assertEquals("audio/wav", wav.type)
        provider.openFile(wav.address(), "r").use { assertTrue(it.statSize > 44 + 2 * 16_000) }
        for (bad in listOf("..%2F..%2Fshared_prefs%2Fsettings.xml", "none.csv")) {
            assertThrows(FileNotFoundException::class.java) { provider.openFile(Uri.parse("content://org.cededge.demo.share/$bad"), "r") }
        }
        assertThrows(FileNotFoundException::class.java) { provider.openFile(sent.address(), "w") }
        // Android emptied the cache: nothing is sent that is not there.
        File(ShareProvider.folder(app), sound).delete()
        rows.performItemClick(null, tapped, rows.getItemIdAtPosition(tapped))
        assertNull(a.sent())
        assertTrue(wavs().isNotEmpty())
        a.press(R.id.clear)
        until("the list is empty") { !a.findViewById<Button>(R.id.share).isEnabled }
        assertFalse(center.entries.isNotEmpty())
        assertEquals("sounds of a list that was cleared", emptyList<String>(), wavs())
    }

    @Test fun oldSoundsAreDeletedAtTheNextStart() {
        for ((name, ageH) in listOf("old.wav" to 25L, "new.wav" to 1L)) {
            val file = File(ShareProvider.folder(app), name).apply { writeText("x") }
            assertTrue(file.setLastModified(System.currentTimeMillis() - ageH * 3_600_000))
        }
        val next = Center(app)
        val done = java.util.concurrent.CountDownLatch(1)
        next.afterWork { done.countDown() }
        done.await()
        assertEquals(listOf("new.wav"), wavs())
    }
}
