package org.cededge.demo

import android.app.Activity
import android.app.Application
import android.content.Intent
import android.os.Looper
import android.widget.TextView
import java.io.File
import java.time.Duration
import java.util.concurrent.CountDownLatch
import org.cededge.demo.core.LiveState
import org.cededge.demo.service.ListenService
import org.cededge.demo.ui.BarsView
import org.cededge.demo.ui.MainActivity
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ServiceController
import org.robolectric.shadows.ShadowAudioRecord

/** What the tests of the app share. */
val app: Application get() = RuntimeEnvironment.getApplication()
val center: Center get() = (app as DemoApp).center
val demoFolder = File(System.getProperty("android_demo"))

/** golden/clip.wav: 16-bit samples at 16 kHz: dog, rooster, rain. */
val clip: ShortArray by lazy {
    val bytes = File(demoFolder, "golden/clip.wav").readBytes()
    ShortArray((bytes.size - 44) / 2) { (bytes[44 + 2 * it].toInt() and 255 or (bytes[45 + 2 * it].toInt() shl 8)).toShort() }
}

fun Activity.text(id: Int) = findViewById<TextView>(id).text.toString()

fun Activity.bars() = findViewById<BarsView>(R.id.bars).contentDescription.toString()

/** Let the main thread work, and the others too, until [done]; fails after half a minute. */
fun until(what: String, done: () -> Boolean) {
    val end = System.nanoTime() + 30_000_000_000
    while (!done()) {
        val state = "${(app as? DemoApp)?.center?.let { c -> LiveState().also(c::fill).run { "$status $detail $seconds s, $tags tags, $dropped dropped" } }}"
        if (System.nanoTime() > end) throw AssertionError("waited in vain: $what\n$state")
        shadowOf(Looper.getMainLooper()).idleFor(Duration.ofMillis(60))
        Thread.sleep(5)
    }
}

/** Wait until the center has done all its work. */
fun afterWork() {
    val done = CountDownLatch(1)
    center.afterWork { done.countDown() }
    done.await()
    shadowOf(Looper.getMainLooper()).idleFor(Duration.ofMillis(60))
}

/** Do what Android would do with the service intents that the app sent. */
class Services {
    var running: ServiceController<ListenService>? = null
    private var starts = 0

    fun run() {
        shadowOf(Looper.getMainLooper()).idleFor(Duration.ofMillis(60))
        while (true) {
            val intent = shadowOf(app).nextStartedService ?: break
            if (running == null) running = Robolectric.buildService(ListenService::class.java, intent).create()
            running!!.get().onStartCommand(intent, 0, ++starts)
        }
        if (running != null && shadowOf(running!!.get()).isStoppedBySelf) destroy()
    }

    fun destroy() {
        running?.destroy()
        running = null
    }
}

/** A microphone that plays [samples], then silence with a little noise; [result] other than 0 is an error code. */
class FakeMicrophone(private val samples: ShortArray = ShortArray(0), private val zeros: Boolean = false) : ShadowAudioRecord.AudioRecordSource {
    @Volatile var result = 0

    /** No more than so many samples come, so that the screen stays as it is. */
    @Volatile var limit = Int.MAX_VALUE
    private var at = 0

    override fun readInShortArray(audioData: ShortArray, offset: Int, size: Int, isBlocking: Boolean): Int {
        Thread.sleep(10) // five times as fast as real time
        if (result != 0) return result
        if (at + size > limit) return 0
        for (i in 0 until size) {
            audioData[offset + i] = if (at < samples.size) samples[at] else if (zeros) 0 else (at % 3 - 1).toShort()
            at++
        }
        return size
    }
}

fun launch(intent: Intent? = null) = Robolectric.buildActivity(MainActivity::class.java, intent)
