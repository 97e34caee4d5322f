package org.cededge.demo

import android.Manifest
import android.content.Intent
import android.content.pm.PackageManager
import android.content.res.Configuration
import android.media.AudioDeviceInfo
import android.media.AudioManager
import android.media.AudioRecord
import android.media.MediaFormat
import android.net.Uri
import android.os.Build
import android.provider.Settings
import android.view.View
import android.widget.Button
import android.widget.ListView
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Collections
import java.util.IdentityHashMap
import org.cededge.demo.core.Entry
import org.cededge.demo.service.ShareProvider
import org.cededge.demo.ui.MainActivity
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertNotSame
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.shadows.AudioDeviceInfoBuilder
import org.robolectric.shadows.ShadowAlertDialog
import org.robolectric.shadows.ShadowAudioRecord
import org.robolectric.shadows.ShadowMediaExtractor
import org.robolectric.shadows.util.DataSource
import org.robolectric.util.ReflectionHelpers

/** The app on the oldest and on the newest Android that it is for: what goes wrong on phones. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [26, 35], qualifiers = "w411dp-h731dp-port-xhdpi")
class AppTest {
    private val services = Services()
    private val microphone = FakeMicrophone()
    private val records: MutableSet<Any> = Collections.newSetFromMap(Collections.synchronizedMap(IdentityHashMap()))
    private val opened get() = records.size

    @Before fun prepare() {
        ShadowAudioRecord.setSourceProvider { record -> microphone.also { records += record } } // called at every read
        afterWork()
    }

    @After fun stop() {
        services.destroy()
        center.stopListening()
        afterWork()
        ShadowAudioRecord.clearSource()
    }

    private fun allow() = shadowOf(app).grantPermissions(Manifest.permission.RECORD_AUDIO)

    private fun MainActivity.press(id: Int) {
        findViewById<Button>(id).performClick()
        services.run()
    }

    private fun MainActivity.says(id: Int) = text(R.id.status) == app.getString(id)

    /** An activity that listens. */
    private fun listening(): org.robolectric.android.controller.ActivityController<MainActivity> {
        allow()
        val c = launch().setup()
        c.get().press(R.id.listen)
        until("listening") { c.get().says(R.string.listening_now) }
        return c
    }

    @Test fun theBundleInTheApkIsLoaded() {
        val a = launch().setup().get()
        assertTrue(a.text(R.id.status), a.says(R.string.idle))
        a.press(R.id.tab_model)
        val card = a.text(R.id.card)
        for (words in listOf("-int8.onnx", "ONNX Runtime 1.2", "Classes: 527", "16 kHz", center.bundle!!.modelSha256.take(16))) assertTrue(card, words in card)
        assertEquals(View.VISIBLE, a.findViewById<View>(R.id.model).visibility)
        assertEquals(View.GONE, a.findViewById<View>(R.id.live).visibility)
    }

    @Test fun refusedPermission() {
        val c = launch().setup()
        val a = c.get()
        a.press(R.id.listen)
        val asked = shadowOf(a).lastRequestedPermission
        val names = asked.requestedPermissions.toList()
        assertEquals(Manifest.permission.RECORD_AUDIO, names[0])
        assertEquals(Build.VERSION.SDK_INT >= 33, Manifest.permission.POST_NOTIFICATIONS in names)
        a.onRequestPermissionsResult(asked.requestCode, asked.requestedPermissions, IntArray(names.size) { PackageManager.PERMISSION_DENIED })
        services.run()
        assertTrue(a.says(R.string.refused))
        assertEquals(0, opened)
        a.press(R.id.allow)
        val intent = shadowOf(a).nextStartedActivity
        assertEquals(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, intent.action)
        assertEquals("package:org.cededge.demo", intent.dataString)
        allow() // there, and then back
        c.pause().stop().restart().start().resume()
        assertTrue(a.says(R.string.idle))
        assertEquals(View.GONE, a.findViewById<View>(R.id.allow).visibility)
    }

    @Test fun theReasonIsGivenBeforeTheSecondRequest() {
        shadowOf(app.packageManager).setShouldShowRequestPermissionRationale(Manifest.permission.RECORD_AUDIO, true)
        val a = launch().setup().get()
        a.press(R.id.listen)
        assertNull(shadowOf(a).lastRequestedPermission)
        val dialog = ShadowAlertDialog.getLatestAlertDialog()
        assertEquals(app.getString(R.string.why_microphone), shadowOf(dialog).message)
        dialog.getButton(-1).performClick()
        shadowOf(android.os.Looper.getMainLooper()).idle()
        assertNotNull(shadowOf(a).lastRequestedPermission)
    }

    @Test fun permissionRevokedWhileListening() {
        val a = listening().get()
        shadowOf(app).denyPermissions(Manifest.permission.RECORD_AUDIO)
        microphone.result = AudioRecord.ERROR_INVALID_OPERATION
        until("the app says so") { a.says(R.string.refused) }
        services.run()
        assertNull("the service ends", services.running)
    }

    @Test fun rotationKeepsTheRecording() {
        val c = listening()
        val before = c.get()
        RuntimeEnvironment.setQualifiers("+land")
        c.configurationChange(Configuration(app.resources.configuration))
        c.visible()
        val after = c.get()
        assertNotSame(before, after)
        assertTrue(after.says(R.string.listening_now))
        assertEquals(app.getString(R.string.stop), after.text(R.id.listen))
        val seconds = seconds()
        until("sound still comes") { seconds() > seconds }
        assertEquals("the microphone was opened once", 1, opened)
    }

    private fun seconds() = org.cededge.demo.core.LiveState().also(center::fill).seconds

    @Test fun microphoneLostAndBack() {
        val a = listening().get()
        microphone.result = AudioRecord.ERROR_DEAD_OBJECT
        until("it tries again") { a.text(R.id.status) == app.getString(R.string.taken, "1") }
        assertEquals("Stop stays possible", app.getString(R.string.stop), a.text(R.id.listen))
        microphone.result = 0
        until("it is back") { a.says(R.string.listening_now) }
        assertEquals(2, opened)
    }

    @Test fun stopWhileTheMicrophoneIsLost() {
        val a = listening().get()
        microphone.result = AudioRecord.ERROR_DEAD_OBJECT
        until("it tries again") { a.text(R.id.status) == app.getString(R.string.taken, "1") }
        a.press(R.id.listen)
        services.run()
        afterWork() // would hang where the waiting thread were not woken
        assertTrue(a.says(R.string.idle))
    }

    @Test fun nothingButZerosIsReported() {
        ShadowAudioRecord.setSourceProvider { FakeMicrophone(zeros = true) }
        allow()
        val a = launch().setup().get()
        a.press(R.id.listen)
        until("the app says so") { a.says(R.string.zeros) }
    }

    private fun usbMicrophone(): AudioDeviceInfo {
        val device = AudioDeviceInfoBuilder.newBuilder().setType(AudioDeviceInfo.TYPE_USB_DEVICE).build()
        // Robolectric's device is no source of sound, and on Android 8 it has no name.
        val port = ReflectionHelpers.getField<Any>(device, "mPort")
        ReflectionHelpers.setField(Class.forName("android.media.AudioPort"), port, "mRole", 1)
        if (Build.VERSION.SDK_INT == 26) ReflectionHelpers.setField(Class.forName("android.media.AudioPort"), port, "mName", "USB")
        return device
    }

    @Test fun aChosenMicrophoneThatIsUnplugged() {
        allow()
        val audio = app.getSystemService(AudioManager::class.java)
        val usb = usbMicrophone()
        shadowOf(audio).setInputDevices(listOf(usb))
        val key = center.devices.single().first
        center.change(center.settings.copy(device = key))
        assertEquals("kept for the next start", key, Store(app).settings().device)
        val a = listening().get()
        shadowOf(audio).setInputDevices(emptyList())
        microphone.result = AudioRecord.ERROR_DEAD_OBJECT
        until("it is lost") { a.text(R.id.status) == app.getString(R.string.taken, "1") }
        microphone.result = 0
        until("another one goes on") { a.says(R.string.unplugged) }
        center.change(center.settings.copy(device = "")) // opens the microphone again at once
        until("chosen automatically") { a.says(R.string.listening_now) }
        assertEquals(3, opened)
    }

    @Test fun anUnpluggedMicrophoneThatComesBack() {
        allow()
        val audio = app.getSystemService(AudioManager::class.java)
        val usb = usbMicrophone()
        shadowOf(audio).addInputDevice(usb, true)
        center.change(center.settings.copy(device = center.devices.single().first))
        val a = listening().get()
        shadowOf(audio).removeInputDevice(usb, true)
        until("it is gone") { a.says(R.string.unplugged) }
        shadowOf(audio).addInputDevice(usb, true)
        until("it is back") { a.says(R.string.listening_now) }
        assertEquals(usb, (records.single() as AudioRecord).preferredDevice)
    }

    @Test @Config(sdk = [35]) fun silencedByAnotherApp() {
        val a = listening().get()
        val audio = app.getSystemService(AudioManager::class.java)
        val ours = shadowOf(audio).createActiveRecordingConfiguration(0, 1, app.packageName)
        val session = (records.single() as AudioRecord).audioSessionId
        ReflectionHelpers.setField(ours, "mClientSessionId", session)
        for ((silenced, words) in listOf(true to R.string.silenced, false to R.string.listening_now)) {
            ReflectionHelpers.setField(ours, "mClientSilenced", silenced)
            shadowOf(audio).setActiveRecordingConfigurations(listOf(ours), true)
            until("it says so") { a.says(words) }
        }
    }

    @Test fun theServiceListensWithTheScreenOff() {
        val c = listening()
        c.pause().stop()
        val seconds = seconds()
        until("sound still comes") { seconds() > seconds + 1 }
        val service = services.running!!.get()
        val notification = shadowOf(service).lastForegroundNotification
        assertEquals(app.getString(R.string.listening), shadowOf(notification).contentTitle)
        val stop = notification.actions.single()
        assertEquals(app.getString(R.string.stop), stop.title)
        val intent = shadowOf(stop.actionIntent).savedIntent
        service.onStartCommand(intent, 0, 9)
        services.run()
        afterWork()
        assertNull(services.running)
        val stopped = seconds()
        Thread.sleep(100)
        assertEquals("the microphone is released", stopped, seconds(), 0.0)
    }

    @Test fun settingsChangeWithoutLoadingTheModelAnew() {
        val c = listening()
        c.get().press(R.id.tab_setup)
        val runtime = center.bundle
        center.change(center.settings.copy(windowS = 1.0, hopS = 0.2, threshold = 0.7, smooth = 1))
        until("it goes on") { seconds() > 3 }
        assertEquals(app.getString(R.string.window, 1.0), c.get().text(R.id.window_text))
        assertTrue(runtime === center.bundle)
        assertEquals(1, opened)
        assertEquals(1.0, Store(app).settings().windowS, 0.0)
    }

    private fun pcm(rate: Int, samples: ShortArray): ByteArray {
        val b = ByteBuffer.allocate(2 * samples.size).order(ByteOrder.nativeOrder())
        for (s in samples) b.putShort(s)
        assertTrue(rate > 0)
        return b.array()
    }

    @Test fun aFileOpenedFromAnotherApp() {
        val address = Uri.parse("content://files/dog.wav")
        val format = MediaFormat.createAudioFormat("audio/raw", 16_000, 1)
        ShadowMediaExtractor.addTrack(DataSource.toDataSource(app, address, null), format, pcm(16_000, clip))
        val a = launch(Intent(Intent.ACTION_VIEW).setDataAndType(address, "audio/wav")).setup().get()
        afterWork()
        until("it is tagged") { a.text(R.id.status) == app.getString(R.string.file_done, "dog.wav") }
        assertTrue(center.entries.map { it.label }.toString(), center.entries.any { it.label == "Dog" } && center.entries.any { it.label == "Chicken, rooster" })
        assertEquals(clip.size / 16_000.0, seconds(), 0.0)
        a.press(R.id.tab_events)
        assertTrue(a.findViewById<Button>(R.id.share).isEnabled)
    }

    @Test fun aFileWithoutSoundIsRefused() {
        val a = launch(Intent(Intent.ACTION_SEND).setType("audio/wav").putExtra(Intent.EXTRA_STREAM, Uri.parse("content://files/none.wav"))).setup().get()
        afterWork()
        until("it says what to do") { "choose a sound file" in a.text(R.id.status) }
    }

    @Test fun aFileAddressOfTheAppItselfIsNotOpened() {
        val own = Uri.fromFile(File(app.filesDir, "x.wav"))
        val a = launch(Intent(Intent.ACTION_SEND).setType("audio/wav").putExtra(Intent.EXTRA_STREAM, own)).setup().get()
        afterWork()
        assertTrue(a.says(R.string.idle))
    }

    @Suppress("DEPRECATION") // its successor needs API 33
    @Test fun eventsAreSharedAsCsvAndKeptAsSound() {
        center.change(center.settings.copy(keepSound = true))
        aFileOpenedFromAnotherApp()
        val a = launch().setup().get()
        a.press(R.id.tab_events)
        a.press(R.id.share)
        val chooser = shadowOf(a).nextStartedActivity
        val sent = chooser.getParcelableExtra<Intent>(Intent.EXTRA_INTENT)!!
        assertTrue(sent.flags and Intent.FLAG_GRANT_READ_URI_PERMISSION != 0)
        val provider = Robolectric.buildContentProvider(ShareProvider::class.java).create("org.cededge.demo.share").get()
        val address = sent.getParcelableExtra<Uri>(Intent.EXTRA_STREAM)!!
        assertTrue(File(app.cacheDir, "share/events.csv").readText().lines()[1].contains("\""))
        provider.openFile(address, "r").close()
        val sound = center.entries.first { it.label == "Dog" }.sound!!
        val rows = a.findViewById<ListView>(R.id.event_list)
        val tapped = (0 until rows.count).first { (rows.getItemAtPosition(it) as Entry).sound == sound }
        rows.performItemClick(null, tapped, rows.getItemIdAtPosition(tapped))
        val wav = shadowOf(a).nextStartedActivity.getParcelableExtra<Intent>(Intent.EXTRA_INTENT)!!
        assertEquals("audio/wav", wav.type)
        provider.openFile(wav.getParcelableExtra<Uri>(Intent.EXTRA_STREAM)!!, "r").use { assertTrue(it.statSize > 44 + 2 * 16_000) }
        for (bad in listOf("..%2F..%2Fshared_prefs%2Fsettings.xml", "none.csv")) {
            assertThrows(java.io.FileNotFoundException::class.java) { provider.openFile(Uri.parse("content://org.cededge.demo.share/$bad"), "r") }
        }
        assertThrows(java.io.FileNotFoundException::class.java) { provider.openFile(address, "w") }
        a.press(R.id.clear)
        until("the list is empty") { !a.findViewById<Button>(R.id.share).isEnabled }
        assertFalse(center.entries.isNotEmpty())
    }
}
