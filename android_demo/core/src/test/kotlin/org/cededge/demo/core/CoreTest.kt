package org.cededge.demo.core

import com.sun.management.ThreadMXBean
import java.io.ByteArrayOutputStream
import java.io.File
import java.lang.management.ManagementFactory
import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.sin
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** The folder android_demo, and what Python computed. */
object Golden {
    val folder = File(System.getProperty("android_demo"))
    private val json = Json.parse(File(folder, "golden/core.json").readText()) as Map<*, *>

    fun list(name: String) = json[name] as List<*>

    fun map(name: String) = json[name] as Map<*, *>

    fun noise(n: Int): FloatArray {
        val levels = intArrayOf(0, 1, 6, 8, 3, 0, 0, 8, 7, 2, 5, 8, 1)
        var x = 1L
        return FloatArray(n) {
            x = (1_103_515_245L * x + 12_345) % (1L shl 31)
            ((x shr 16) - 16_384) / 16_384f * levels[it / 2_500 % levels.size] / 8
        }
    }
}

fun Any?.num() = (this as JsonNumber).text.toDouble()
fun Any?.int() = (this as JsonNumber).text.toInt()
fun Any?.doubles() = (this as List<*>).map { it.num() }
fun Any?.floats() = FloatArray((this as List<*>).size) { this[it].num().toFloat() }

/** Class c is the loudest sample of the window's c-th quarter, as in golden.py. */
class Quarters : Engine {
    override val runtime = "test"
    val lengths = ArrayList<Int>()

    override fun predict(window: FloatArray, count: Int, probs: FloatArray) {
        for (c in probs.indices) {
            var top = 0f
            for (i in c * count / 4 until (c + 1) * count / 4) top = maxOf(top, abs(window[i]))
            probs[c] = top
        }
    }

    override fun close() = Unit
}

fun fakeBundle(classes: Int = 4, windowS: Double = 0.5) =
    Bundle("m.onnx", "int8", "", 1, "", "", windowS, 16_000, 2_400, List(classes) { "class $it" })

class CoreTest {
    @Test fun windows() {
        for (case in Golden.list("windows")) {
            val (samples, window, hop, full, all) = (case as List<*>).map { it.int() }
            assertEquals("$case", full.toLong(), Windows.full(samples.toLong(), window, hop))
            assertEquals("$case", all.toLong(), Windows.all(samples.toLong(), window, hop))
        }
    }

    @Test fun theLikeliestTags() {
        for (case in Golden.list("top")) {
            val c = case as Map<*, *>
            val top = TopK(c["k"].int()).apply { find(c["probs"].floats()) }
            assertEquals((c["indices"] as List<*>).map { it.int() }, top.indices.take(top.count))
        }
    }

    private fun list(events: List<Event>) = events.map { listOf(it.index.toDouble(), it.startS, it.endS, it.peak) }

    @Test fun eventsOfPredictions() {
        val all = Golden.list("events").single() as Map<*, *>
        val starts = all["starts"].doubles()
        val probs = (all["probs"] as List<*>).map { it.floats() }
        for (case in all["cases"] as List<*>) {
            val c = case as Map<*, *>
            val r = c["rule"] as Map<*, *>
            val d = EventRule()
            val rule = EventRule(
                r["on"]?.num() ?: d.on, r["off"]?.num() ?: d.off, r["min_duration_s"]?.num() ?: d.minDurationS, r["smooth"]?.int() ?: d.smooth,
                (r["classes"] as Map<*, *>?).orEmpty().entries.associate { (c, v) -> (c as String).toInt() to v.doubles()[0] },
            )
            val events = Events(rule, 5)
            val tags = Tags(5)
            for ((i, expected) in (c["pushed"] as List<*>).withIndex()) {
                tags.startS = starts[i]
                tags.endS = starts[i] + 1
                probs[i].copyInto(tags.probs)
                val ended = ArrayList<Event>().also { events.push(tags, it) }
                assertEquals("$r, window $i", (expected as List<*>).map { it.doubles() }, list(ended))
            }
            val ended = ArrayList<Event>().also { events.finish(it) }
            assertEquals((c["finish"] as List<*>).map { it.doubles() }, list(ended))
        }
    }

    @Test fun aStreamIsTheSameForEveryChunking() {
        for (case in Golden.list("stream")) for (chunk in intArrayOf(1, 37, 1_600, 4_799, 40_000)) {
            val c = case as Map<*, *>
            val stream = Stream(Quarters(), fakeBundle())
            stream.configure(c["window"].int(), c["hop"].int())
            val events = Events(EventRule(), 4)
            val tags = Tags(4)
            val found = ArrayList<List<Double>>()
            val ended = ArrayList<Event>()
            fun pop() {
                while (stream.ready() > 0) {
                    stream.predict(stream.take(tags), tags)
                    found += listOf(tags.startS, tags.endS) + tags.probs.map { it.toDouble() }
                    events.push(tags, ended)
                }
            }
            val wave = Golden.noise(c["samples"].int())
            for (i in wave.indices step chunk) {
                val piece = wave.copyOfRange(i, minOf(i + chunk, wave.size))
                stream.accept(piece, piece.size)
                pop()
            }
            stream.finish()
            pop()
            events.finish(ended)
            assertEquals("chunks of $chunk", (c["tags"] as List<*>).map { it.doubles() }, found)
            assertEquals("chunks of $chunk", (c["events"] as List<*>).map { it.doubles() }, list(ended))
        }
    }

    @Test fun windowAndHopChangeWithinAStream() {
        val stream = Stream(Quarters(), fakeBundle())
        val wave = Golden.noise(20_000)
        stream.accept(wave, 20_000)
        stream.configure(4_000, 2_000)
        assertEquals("a new window begins at the newest sample", 0, stream.ready())
        stream.accept(wave, 6_000)
        val tags = Tags(4)
        assertEquals(2, stream.ready())
        assertEquals(4_000, stream.take(tags))
        assertEquals(20_000 / 16_000.0, tags.startS, 0.0)
        assertThrows(InputError::class.java) { stream.configure(9_000, 1_000) }
        assertThrows(InputError::class.java) { stream.configure(4_000, 5_000) }
    }

    @Test fun level() {
        for (case in Golden.list("level")) {
            val (n, rms, peak) = case.doubles()
            val level = Level()
            level.add(Golden.noise(n.toInt() + 2_500).copyOfRange(2_500, n.toInt() + 2_500), n.toInt())
            assertEquals(rms, level.rmsDb, 1e-6)
            assertEquals(peak, level.peakDb, 1e-6)
        }
        val level = Level()
        level.add(FloatArray(500), 500)
        assertEquals(500, level.zeros)
        assertEquals(Level.FLOOR_DB, level.rmsDb, 0.0)
        level.add(floatArrayOf(0f, 0.1f, 0f), 3)
        assertEquals("only the zeros after the last sound count", 1, level.zeros)
    }

    @Test fun channelsBecomeOneAsInPython() {
        val noise = Golden.noise(10_000)
        fun a(i: Int) = noise[2_500 + i]
        fun b(i: Int) = noise[5_000 + i]
        fun c(i: Int) = noise[7_500 + i]
        // As channels() in golden.py.
        val sounds = listOf<(Int) -> List<Float>>(
            { i -> listOf(a(i), if (i < 300) -a(i) else b(i)) },
            { i -> listOf(c(i), if (i < 200) 0f else if (i < 400) -c(i) else b(i), if (i < 400) 0f else a(i)) },
        )
        for ((sound, expected) in sounds zip Golden.list("mixed")) for (chunk in intArrayOf(1, 7, 10, 600)) {
            val frames = List(600, sound)
            val mixer = Mixer(frames[0].size, 100)
            val out = ArrayList<Float>()
            val target = FloatArray(mixer.room(chunk))
            for (piece in frames.chunked(chunk)) out += target.take(mixer.push(piece.flatten().toFloatArray(), piece.size, target))
            out += target.take(mixer.finish(target))
            assertArrayEquals("chunks of $chunk", expected.floats(), out.toFloatArray(), 0f)
        }
    }

    private fun tone(rate: Int, n: Int) = FloatArray(n) { i ->
        (0.3 * listOf(300.0, 1_250.0, 3_100.0).sumOf { sin(2 * PI * it * i / rate) }).toFloat()
    }

    @Test fun resamplerAgreesWithSoxr() {
        for (case in Golden.list("resampled")) for (chunk in intArrayOf(7, 800, 100_000)) {
            val c = case as Map<*, *>
            val rate = c["rate"].int()
            val wave = tone(rate, c["samples"].int())
            val resampler = Resampler(rate, 16_000)
            val out = ArrayList<Float>()
            val target = FloatArray(resampler.room(wave.size))
            for (i in wave.indices step chunk) {
                val piece = wave.copyOfRange(i, minOf(i + chunk, wave.size))
                out += target.take(resampler.process(piece, piece.size, target))
            }
            out += target.take(resampler.finish(target))
            val expected = c["out"].floats()
            assertEquals("$rate Hz", expected.size, out.size)
            for (i in expected.indices) {
                // Near the ends the two filters see different lengths of nothing.
                val most = if (i in 100 until expected.size - 100) 1e-3f else 0.05f
                assertEquals("$rate Hz, sample $i of chunks of $chunk", expected[i], out[i], most)
            }
        }
    }

    @Test fun melColumn() {
        val wave = Golden.noise(20_000)
        val mel = Mel()
        val db = FloatArray(Mel.BANDS)
        Golden.list("mel").forEachIndexed { i, expected ->
            mel.column(wave, 2_000 + 25 * 160 * i, db)
            assertArrayEquals("frame $i", expected.floats(), db, 2e-3f)
        }
    }

    @Test fun jsonIsHashedAsPythonDoes() {
        val case = Golden.map("hashed")
        val text = Json.canonical(Json.parse(case["json"] as String))
        assertEquals(case["sha256"], BundleReader.sha256(text.toByteArray()))
        for (bad in listOf("", "{", "[1,]", "{\"a\" 1}", "nul", "\"\\x\"", "1 2", "-", "[".repeat(1_000))) {
            assertThrows(bad, InputError::class.java) { Json.parse(bad) }
        }
    }

    @Test fun everySettingFitsABundleThatWasRead() {
        val long = Bundle("m.onnx", "int8", "", 1, "", "", 10.0, 16_000, 15_000, listOf("Dog"))
        for (bundle in listOf(long, fakeBundle(1))) for (windowS in listOf(0.1, 0.5, 2.0, 10.0)) {
            // It throws where the window does not fit; nobody catches that when the microphone starts.
            Listener(Quarters(), bundle, Settings(windowS = windowS, hopS = windowS), {}, { _, _, _ -> })
        }
    }

    @Test fun eventsAreWrittenAsCsvAndSound() {
        val text = csv(listOf(Entry(Event(3, 1.25, 2.5, 0.75), "Male speech, \"x\"", 1_700_000_000_123, null)))
        assertEquals("time,start_s,end_s,index,label,peak\n2023-11-14T22:13:20.123Z,1.250,2.500,3,\"Male speech, \"\"x\"\"\",0.7500\n", text)
        val out = ByteArrayOutputStream().also { writeWav(floatArrayOf(0f, 1f, -1f, 9f), 16_000, it) }
        javax.sound.sampled.AudioSystem.getAudioInputStream(out.toByteArray().inputStream()).use {
            assertEquals(4, it.frameLength)
            assertEquals(16_000f, it.format.sampleRate)
            assertArrayEquals(byteArrayOf(0, 0, -1, 127, 1, -128, -1, 127), it.readBytes())
        }
    }

    @Test fun aLongEventKeepsItsLastSeconds() {
        val lengths = ArrayList<Int>()
        val listener = Listener(Quarters(), fakeBundle(1), Settings(windowS = 0.5, hopS = 0.5, smooth = 1, keepSound = true), {}, { _, sound, _ -> lengths += sound!!.size })
        for ((seconds, amplitude) in listOf(2 to 0.9f, 2 to 0f, 90 to 0.9f, 2 to 0f)) repeat(seconds) {
            listener.accept(FloatArray(16_000) { amplitude }, 16_000)
            listener.predictAll()
        }
        listener.finishFile()
        // The first begins with the stream: half a second follows it. The second has half a second on either side.
        assertEquals(listOf(2.5, 11.0), lengths.map { it / 16_000.0 })
    }

    @Test fun lostSoundEndsEvents() {
        val found = ArrayList<List<Double>>()
        val listener = Listener(Quarters(), fakeBundle(1), Settings(windowS = 0.5, hopS = 0.25, smooth = 1), {}, { e, _, ageS -> found += listOf(e.startS, e.endS, ageS) })
        fun loud(seconds: Int) {
            listener.accept(FloatArray(16_000 * seconds) { 0.9f }, 16_000 * seconds)
            listener.predictAll()
        }
        loud(2)
        listener.gap()
        assertEquals("at once, when the clock still fits", listOf(listOf(0.0, 2.0, 2.0)), found)
        loud(3)
        listener.finishFile()
        assertEquals(listOf(listOf(0.0, 2.0, 2.0), listOf(2.0, 5.0, 3.0)), found)
    }

    @Test(timeout = 60_000) fun soundLostDuringAPredictionEndsItsEvents() {
        val found = ArrayList<Event>()
        lateinit var listener: Listener
        var windows = 0
        val engine = object : Engine {
            override val runtime = "test"

            override fun predict(window: FloatArray, count: Int, probs: FloatArray) {
                probs.fill(0.9f)
                if (++windows == 2) listener.gap()
            }

            override fun close() = Unit
        }
        listener = Listener(engine, fakeBundle(1), Settings(windowS = 0.5, hopS = 0.5, smooth = 1), {}, { e, _, _ -> found += e })
        listener.accept(FloatArray(24_000), 24_000) // three windows: the third is behind the gap's begin and is dropped
        listener.predictAll()
        assertEquals(listOf(0.0 to 1.0), found.map { it.startS to it.endS })
        assertEquals(2, windows)
    }

    @Test(timeout = 60_000) fun aSlowPhoneDropsHopsAndCountsThem() {
        val gate = Object()
        var entered = false
        var open = false
        val slow = object : Engine {
            override val runtime = "slow"

            override fun predict(window: FloatArray, count: Int, probs: FloatArray) = synchronized(gate) {
                entered = true
                gate.notifyAll()
                while (!open) gate.wait()
            }

            override fun close() = Unit
        }
        val settings = Settings(windowS = 0.5, hopS = 0.1)
        val listener = Listener(slow, fakeBundle(), settings, {}, { _, _, _ -> })
        listener.start()
        listener.accept(FloatArray(8_000), 8_000)
        synchronized(gate) { while (!entered) gate.wait() }
        listener.accept(FloatArray(32_000), 32_000) // 20 hops more, of which 5 may wait
        synchronized(gate) {
            open = true
            gate.notifyAll()
        }
        val state = LiveState()
        while (state.dropped == 0L) listener.fill(state)
        assertEquals(15, state.dropped)
        listener.close()
    }

    @Test fun aHopMakesNoGarbage() {
        val listener = Listener(Quarters(), fakeBundle(), Settings(windowS = 0.5, hopS = 0.1, smooth = 3), {}, { _, _, _ -> })
        val piece = FloatArray(800) { 0.1f }
        val state = LiveState()
        fun hops(n: Int) = repeat(2 * n) {
            listener.accept(piece, piece.size)
            listener.predictAll()
            listener.fill(state)
        }
        hops(2_000) // the JIT has compiled it by then
        val threads = ManagementFactory.getThreadMXBean() as ThreadMXBean
        val id = Thread.currentThread().id
        val before = threads.getThreadAllocatedBytes(id)
        hops(1_000)
        val perHop = (threads.getThreadAllocatedBytes(id) - before) / 1_000
        assertTrue("$perHop bytes a hop", perHop < 16)
    }
}
