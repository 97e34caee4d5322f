package org.cededge.demo

import java.io.File
import java.lang.management.ManagementFactory
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import kotlin.math.abs
import org.cededge.demo.core.Bundle
import org.cededge.demo.core.BundleReader
import org.cededge.demo.core.Folder
import org.cededge.demo.core.InputError
import org.cededge.demo.core.Json
import org.cededge.demo.core.TopK
import org.cededge.demo.core.floats
import org.cededge.demo.engine.OrtEngine
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Models of one Identity for each output, made with onnx.helper. */
val TWO_INPUTS: ByteArray = Base64.getDecoder().decode(
    "CAgSADpIChAKAWESAXAiCElkZW50aXR5EgFnWg8KAWESCgoICAESBAoCCAFaDwoBYhIKCggIARIECgIIAWIPCgFwEgoKCAgBEgQKAggBQgQKABAN",
)
val TWO_OUTPUTS: ByteArray = Base64.getDecoder().decode(
    "CAgSADpaChAKAWESAXAiCElkZW50aXR5ChAKAWESAXEiCElkZW50aXR5EgFnWg8KAWESCgoICAESBAoCCAFiDwoBcBIKCggIARIECgIIAWIPCgFxEgoKCAgBEgQKAggBQgQKABAN",
)

/** The app's engine on this machine's ONNX Runtime, against what Python predicted with the same file. */
class OrtTest {
    private val folder = File(System.getProperty("bundle"))
    private val bundle = BundleReader.read(Folder(folder))
    private fun engine() = OrtEngine(Folder(folder).map(bundle.modelFile), bundle)
    private fun direct(bytes: ByteArray): ByteBuffer = ByteBuffer.allocateDirect(bytes.size).apply { put(bytes).rewind() }
    private val answers = File(System.getProperty("answers"))
    private val json = Json.parse(File(answers, "answers.json").readText()) as Map<*, *>

    @Test fun asPython() {
        assertTrue(bundle.modelFile, bundle.modelFile.endsWith("-int8.onnx"))
        val engine = engine()
        val same = engine.runtime == "ONNX Runtime ${json["version"]}"
        assertEquals("run with the jar of Python's version", System.getProperty("same_version").toBoolean(), same)
        // Two versions may round a value to the other side: the bound of an int8 file between machines (interop/arm.py).
        val most = if (same) 1e-3f else 5e-3f
        val clips = json["clips"] as List<*>
        assertTrue(clips.size >= 9)
        val probs = FloatArray(bundle.labels.size)
        for ((i, clip) in clips.withIndex()) {
            val name = (clip as Map<*, *>)["name"]
            val expected = clip["probs"].floats()
            val bytes = ByteBuffer.wrap(File(answers, "$i.f32").readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
            val wave = FloatArray(bytes.remaining()).also { bytes.get(it) }
            engine.predict(wave, wave.size, probs)
            for (c in probs.indices) assertTrue("$name, ${bundle.labels[c]}: ${probs[c]}, Python ${expected[c]}", abs(probs[c] - expected[c]) <= most)
            val top = TopK(5).apply { find(probs) }.indices.toSet()
            val wanted = TopK(5).apply { find(expected) }
            // Two classes that are as likely as each other may change places at the border of the five.
            for (k in 0 until 5) if (wanted.indices[k] !in top) {
                assertTrue("$name: ${bundle.labels[wanted.indices[k]]} is not among the five", !same && probs[wanted.indices[k]] >= top.minOf { probs[it] } - 2 * most)
            }
        }
        engine.close()
    }

    @Test fun aHopNeedsNoNewMemoryOfOurs() {
        val engine = engine()
        val probs = FloatArray(bundle.labels.size)
        val wave = FloatArray(32_000)
        val threads = ManagementFactory.getThreadMXBean() as com.sun.management.ThreadMXBean
        fun bytes(n: Int): Long {
            val before = threads.getThreadAllocatedBytes(Thread.currentThread().id)
            repeat(n) { engine.predict(wave, wave.size, probs) }
            return threads.getThreadAllocatedBytes(Thread.currentThread().id) - before
        }
        bytes(20)
        val each = bytes(20) / 20
        assertTrue("$each bytes a window: the window alone would be 128,000", each < 4_000)
        engine.close()
    }

    @Test fun aBrokenModelIsRefused() {
        val e = assertThrows(InputError::class.java) { OrtEngine(direct("no model".toByteArray()), bundle) }
        assertTrue(e.message, "export the bundle again" in e.message!!)
    }

    @Test fun aRefusedModelLeavesNoMemoryBehind() {
        val model = Folder(folder).map(bundle.modelFile)
        val other = bundle.run { Bundle(modelFile, kind, quantisation, modelBytes, modelSha256, sha256, windowS, rateHz, minSamples, labels.reversed()) }
        fun residentMb() = File("/proc/self/status").readLines().first { it.startsWith("VmRSS") }.filter(Char::isDigit).toInt() / 1024
        fun refuse(times: Int) = repeat(times) {
            val e = assertThrows(InputError::class.java) { OrtEngine(model, other) }
            assertTrue(e.message, "other labels" in e.message!!)
        }
        refuse(5) // the allocator has its arenas by then
        val before = residentMb()
        refuse(40)
        val grown = residentMb() - before
        assertTrue("$grown MB more: one session holds more than ${model.capacity() shr 20} MB", grown < 10 * (model.capacity() shr 20))
    }

    @Test fun aModelWithOtherInputsOrOutputsIsRefused() {
        for (model in listOf(TWO_INPUTS, TWO_OUTPUTS)) {
            val e = assertThrows(InputError::class.java) { OrtEngine(direct(model), bundle) }
            assertTrue(e.message, "other inputs or outputs" in e.message!!)
        }
    }
}
