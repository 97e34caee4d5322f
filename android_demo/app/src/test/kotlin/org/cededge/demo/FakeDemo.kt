package org.cededge.demo

import android.app.Application
import org.cededge.demo.core.Bundle
import org.cededge.demo.core.Demo
import org.cededge.demo.core.Engine
import org.cededge.demo.core.Entry
import org.cededge.demo.core.Event
import org.cededge.demo.core.HasDemo
import org.cededge.demo.core.Listener
import org.cededge.demo.core.LiveState
import org.cededge.demo.core.Settings
import org.cededge.demo.core.Status

/** An app whose state never changes by itself: for pictures that are the same every time. */
class FakeApp : Application(), HasDemo {
    override val demo = FakeDemo()
}

class FakeDemo : Demo {
    private val labels = listOf(
        "Dog", "Animal", "Domestic animals, pets", "Bark", "Chicken, rooster", "Crowing, cock-a-doodle-doo", "Fowl", "Rain", "Speech",
        "Water tap, faucet, and then a name that is too long for a narrow screen",
    )
    var status = Status.IDLE
    var detail = ""
    var dropped = 0L
    override var settings = Settings()
    override var bundle = Bundle("tiny-int8.onnx", "int8", "weights int8 per channel; activations uint8 per tensor", 6_121_653, "702ce1ef6b537925878967f0", "f5413664b558957058fe3667", 10.0, 16_000, 2_400, labels)
    override val runtime = "ONNX Runtime 1.26.0"
    override val entries = ArrayList<Entry>()
    override val sources = listOf("UNPROCESSED", "VOICE_RECOGNITION", "MIC").map { it to it }
    override val devices = listOf("11:USB microphone" to "USB microphone")
    private var listener: Listener? = null
    private var calls = 0
    private var changes = 0

    /** The clip four times over, with predictions that are written down here instead of computed. */
    fun playTheClip() {
        val engine = object : Engine {
            override val runtime = "written down"

            override fun predict(window: FloatArray, count: Int, probs: FloatArray) {
                val part = calls++ / 5 % 3
                val on = listOf(listOf(0, 1, 2, 3), listOf(4, 5, 6, 9), listOf(7))[part]
                probs.fill(0.02f)
                on.forEachIndexed { i, c -> probs[c] = 0.93f - 0.11f * i }
                probs[8] = 0.12f
            }

            override fun close() = Unit
        }
        listener = Listener(engine, bundle, settings.copy(hopS = 0.5), {}, { e, _, _ -> add(e) }).also { l ->
            val piece = FloatArray(800)
            repeat(5) {
                for (i in 0 until clip.size - 800 step 800) {
                    for (k in 0 until 800) piece[k] = clip[i + k] / 32768f
                    l.accept(piece, 800)
                    l.predictAll()
                }
            }
        }
    }

    private fun add(e: Event) {
        entries += Entry(e, labels[e.index], 1_700_000_000_000 + (1000 * e.startS).toLong(), if (e.index == 0) "x.wav" else null)
        changes++
    }

    override fun fill(state: LiveState) {
        listener?.fill(state)
        state.status = status
        state.detail = detail
        state.latencyMs = if (listener == null) 0.0 else 31.0
        state.realTime = if (listener == null) 0.0 else 0.06
        state.dropped = dropped
        state.listVersion = changes
    }

    override fun change(settings: Settings) {
        this.settings = settings
    }

    override fun requestListening() = Unit

    override fun startListening() = Unit

    override fun refuse() = Unit

    override fun stopListening() = Unit

    override fun openFile(address: String) = Unit

    override fun openBundle(address: String) = Unit

    override fun useBuiltIn() = Unit

    override fun clearEntries() = Unit

    override fun csvAddress(): String? = null

    override fun soundAddress(entry: Entry): String? = null

    override fun observe(changed: Runnable) = Unit

    override fun forget(changed: Runnable) = Unit
}
