package org.cededge.demo.core

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.ByteBuffer
import java.nio.file.Files
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Bundles as they come from a zip: read, or refused with a sentence. */
class BundleReaderTest {
    /** A small bundle with right hashes, before [change] spoils its fields and [files] its files. */
    private fun bundle(change: (MutableMap<String, Any?>) -> Unit = {}, spoil: (MutableMap<String, ByteArray>) -> Unit = {}): BundleFiles {
        val labels = "Dog\nRain\n".toByteArray()
        val model = "model".toByteArray()
        fun n(v: Any) = JsonNumber(v.toString())
        val fields = linkedMapOf<String, Any?>(
            "format" to n(1), "input" to "waveform", "output" to "prob", "window_s" to n(10.0), "labels_sha256" to BundleReader.sha256(labels),
            "spec" to mapOf("n_classes" to n(2), "patch" to n(16), "max_frames" to n(1_012), "frontend" to mapOf("rate_hz" to n(16_000), "hop" to n(160), "n_fft" to n(512))),
            "files" to listOf("fp32", "int8").map {
                mapOf("name" to "tiny-$it.onnx", "kind" to it, "quantisation" to "x", "bytes" to n(5), "sha256" to BundleReader.sha256(model))
            },
        )
        change(fields)
        if ("sha256" !in fields) fields["sha256"] = BundleReader.sha256(Json.canonical(fields).toByteArray())
        val files = mutableMapOf("bundle.json" to Json.canonical(fields).toByteArray(), "labels.txt" to labels, "tiny-int8.onnx" to model)
        spoil(files)
        return object : BundleFiles {
            override fun open(name: String) = files[name]?.let(::ByteArrayInputStream)

            override fun map(name: String): ByteBuffer = ByteBuffer.wrap(files.getValue(name))
        }
    }

    @Test fun aBundleIsRead() {
        val b = BundleReader.read(bundle())
        assertEquals("int8 comes first, and fp32 may be missing", "tiny-int8.onnx", b.modelFile)
        assertEquals(listOf("Dog", "Rain"), b.labels)
        assertEquals(160_000, b.windowSamples)
        assertEquals(mapOf(1 to 0.3), BundleReader.read(bundle({ it["thresholds"] = mapOf("Rain" to JsonNumber("0.3")) })).thresholds)
        assertEquals(2_400, b.minSamples)
    }

    @Test fun aBadBundleIsRefusedWithASentence() {
        fun n(v: Any) = JsonNumber(v.toString())
        fun spec(classes: Int, rate: Int, patch: Int = 16, maxFrames: Int = 1_012) = mapOf(
            "n_classes" to n(classes), "patch" to n(patch), "max_frames" to n(maxFrames),
            "frontend" to mapOf("rate_hz" to n(rate), "hop" to n(160), "n_fft" to n(512)),
        )
        fun named(vararg names: String) = names.map { mapOf("name" to it, "kind" to "int8", "quantisation" to "x", "bytes" to n(5), "sha256" to "0") }
        val cases = listOf<Pair<String, BundleFiles>>(
            "no bundle.json" to bundle(spoil = { it.remove("bundle.json") }),
            "no JSON" to bundle(spoil = { it["bundle.json"] = "{".toByteArray() }),
            "format" to bundle({ it["format"] = n(2) }),
            "changed after" to bundle({ it["sha256"] = "0" }),
            "lacks labels.txt" to bundle(spoil = { it.remove("labels.txt") }),
            "labels.txt is not" to bundle(spoil = { it["labels.txt"] = "Rain\nDog\n".toByteArray() }),
            "2 labels for a model of 3" to bundle({ it["spec"] = spec(3, 16_000) }),
            "8000 Hz" to bundle({ it["spec"] = spec(2, 8_000) }),
            "takes mel" to bundle({ it["input"] = "mel" }),
            "lacks tiny-int8.onnx" to bundle(spoil = { it.remove("tiny-int8.onnx") }),
            "tiny-int8.onnx is not" to bundle(spoil = { it["tiny-int8.onnx"] = "other".toByteArray() }),
            "tiny-fp32.onnx is not" to bundle(spoil = { it["tiny-fp32.onnx"] = "other".toByteArray() }),
            "no .onnx" to bundle({ it["files"] = emptyList<Any>() }),
            "is broken" to bundle({ it.remove("spec") }),
            "a window of 1.0E9 s" to bundle({ it["window_s"] = n(1e9) }),
            "a window of 10.1 s" to bundle({ it["window_s"] = n(10.1) }), // more than the model takes
            "a window of 0.1 s" to bundle({ it["window_s"] = n(0.1) }), // less than one patch of frames
            "a window of 2.0 s" to bundle({ it["window_s"] = n(2.0); it["spec"] = spec(2, 16_000, maxFrames = 200) }),
            "a window of 10.0 s" to bundle({ it["spec"] = spec(2, 16_000, patch = Int.MAX_VALUE) }),
            "no patch" to bundle({ it["window_s"] = n(0.0); it["spec"] = spec(2, 16_000, patch = -1) }),
            "no max_frames" to bundle({ it["spec"] = spec(2, 16_000, maxFrames = 0) }),
            "a file is named ../../x" to bundle({ it["files"] = named("tiny-int8.onnx", "../../x") }),
            "a file is named ..\\x" to bundle({ it["files"] = named("tiny-int8.onnx", "..\\x") }),
            "a file is named .." to bundle({ it["files"] = named("tiny-int8.onnx", "..") }),
            "a threshold of Cat" to bundle({ it["thresholds"] = mapOf("Cat" to n(0.3)) }),
            "a threshold of Dog" to bundle({ it["thresholds"] = mapOf("Dog" to n(1)) }),
        )
        for ((words, files) in cases) {
            val e = assertThrows(words, InputError::class.java) { BundleReader.read(files) }
            assertTrue("$words: ${e.message}", words in e.message!! && e.message!!.endsWith("."))
        }
    }

    @Test fun aZipWithHostileEntriesIsRefused() {
        val target = Files.createTempDirectory("zip").toFile()
        fun zip(name: String, bytes: ByteArray, names: java.nio.charset.Charset = Charsets.UTF_8) = ByteArrayOutputStream().also { out ->
            ZipOutputStream(out, names).use { z -> z.run { putNextEntry(ZipEntry(name)); write(bytes) } }
        }.toByteArray().inputStream()
        val most = 1 shl 20
        val cases = listOf(
            "file names that cannot be read" to zip("B\u00fcndel/bundle.json", ByteArray(1), Charsets.ISO_8859_1),
            "bundle.json is too large" to zip("bundle.json", ByteArray(most + 1)),
            "labels.txt is too large" to zip("labels.txt", ByteArray(most + 1)),
        )
        for ((words, stream) in cases) {
            val e = assertThrows(words, InputError::class.java) { BundleReader.unzip(stream, target) }
            assertTrue("$words: ${e.message}", words in e.message!!)
        }
        for (name in listOf("labels.txt" to most, "tiny-int8.onnx" to 2 * most)) BundleReader.unzip(zip(name.first, ByteArray(name.second)), target)
        target.deleteRecursively()
    }

    @Test fun aZipCannotWriteOutsideItsFolder() {
        val folder = Files.createTempDirectory("zip").toFile()
        val target = File(folder, "inside").apply { mkdir() }
        fun zip(vararg names: String) = ByteArrayOutputStream().also { bytes ->
            ZipOutputStream(bytes).use { z -> for (n in names) z.run { putNextEntry(ZipEntry(n)); write(1) } }
        }.toByteArray().inputStream()
        BundleReader.unzip(zip("../bundle.json", "deep/labels.txt", "..\\tiny-int8.onnx", "note.txt"), target)
        assertEquals(listOf("bundle.json", "labels.txt", "tiny-int8.onnx"), target.list()!!.sorted())
        assertEquals(listOf("inside"), folder.list()!!.toList())
        for (bad in listOf(zip("note.txt"), "no zip at all".byteInputStream())) {
            assertThrows(InputError::class.java) { BundleReader.unzip(bad, target) }
        }
        folder.deleteRecursively()
    }
}
