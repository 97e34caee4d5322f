package org.cededge.demo.core

import java.io.File
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.channels.FileChannel.MapMode.READ_ONLY
import java.security.MessageDigest
import java.util.zip.ZipInputStream

/** Where a bundle's files are read from: the app's assets, or a folder. */
interface BundleFiles {
    /** Null where there is no such file. */
    fun open(name: String): InputStream?

    /** The file's bytes outside the heap, which on phones is smaller than a large model. Raises IOException. */
    fun map(name: String): ByteBuffer
}

/** The files of a folder on storage. */
class Folder(private val folder: File) : BundleFiles {
    override fun open(name: String) = File(folder, name).takeIf { it.isFile }?.inputStream()

    override fun map(name: String): ByteBuffer = File(folder, name).inputStream().use { it.channel.map(READ_ONLY, 0, it.channel.size()) }
}

/** The part of bundle.json that the app needs, and the labels. */
class Bundle(
    /** Such as `tiny-int8.onnx`. */
    val modelFile: String,
    val kind: String,
    val quantisation: String,
    val modelBytes: Long,
    val modelSha256: String,
    /** Of bundle.json: the bundle's name tag. */
    val sha256: String,
    /** Length of the longest window in seconds. */
    val windowS: Double,
    val rateHz: Int,
    /** The shortest input that the model takes, in samples. */
    val minSamples: Int,
    /** Display names in the order of the outputs. */
    val labels: List<String>,
    /** Class index -> the probability from which on its events begin, where the model has one of its own. */
    val thresholds: Map<Int, Double> = emptyMap(),
) {
    val windowSamples get() = Math.round(windowS * rateHz).toInt()
}

/** Reads and checks bundles, as `read_bundle` in `ced_edge/runtime/bundle.py`. Every refusal names the mend. */
object BundleReader {
    private const val AGAIN = "Copy the whole bundle again."
    private const val MAX_ZIP = 400L shl 20
    private const val MAX_TEXT = 1L shl 20 // bundle.json and labels.txt are read whole
    private const val MAX_FILES = 64
    private const val MAX_WINDOW_S = 10
    private val KINDS = listOf("int8", "int8-static", "fp32")

    /** Raises InputError. Model files that the app does not run may be missing: an APK carries one of them only. */
    fun read(files: BundleFiles): Bundle {
        val text = files.open("bundle.json")?.use { it.readBytes().toString(Charsets.UTF_8) }
            ?: throw InputError("There is no bundle.json: choose a zip of a folder that `ced-edge export` wrote.")
        val fields = Json.parse(text) as? Map<*, *> ?: throw InputError("bundle.json is broken. $AGAIN")
        if ((fields["format"] as? JsonNumber)?.text != "1") {
            throw InputError("bundle.json is of a format that this app does not know: export the bundle again.")
        }
        if (fields["sha256"] != sha256(Json.canonical(fields - "sha256").toByteArray())) {
            throw InputError("bundle.json was changed after the export (its hash differs). $AGAIN")
        }
        val bundle = try {
            parse(fields, labels(files, fields))
        } catch (e: RuntimeException) {
            throw InputError("bundle.json is broken (${e.message}): export the bundle again.")
        }
        @Suppress("UNCHECKED_CAST")
        for (file in fields["files"] as List<Map<String, Any?>>) {
            val name = file["name"] as String
            val stream = files.open(name)
            if (stream == null && name == bundle.modelFile) throw InputError("The bundle lacks $name. $AGAIN")
            if (stream != null && stream.use(::sha256) != file["sha256"]) {
                throw InputError("$name is not the file that was exported (its hash differs). $AGAIN")
            }
        }
        return bundle
    }

    private fun labels(files: BundleFiles, fields: Map<*, *>): List<String> {
        val bytes = files.open("labels.txt")?.use { it.readBytes() } ?: throw InputError("The bundle lacks labels.txt. $AGAIN")
        if (sha256(bytes) != fields["labels_sha256"]) {
            throw InputError("labels.txt is not the file that was exported (its hash differs). $AGAIN")
        }
        return bytes.toString(Charsets.UTF_8).trimEnd('\n').split('\n')
    }

    private fun parse(fields: Map<*, *>, labels: List<String>): Bundle {
        val spec = fields["spec"] as Map<*, *>
        val frontend = spec["frontend"] as Map<*, *>
        val rate = int(frontend, "rate_hz")
        val classes = int(spec, "n_classes")
        if (rate != 16_000) throw InputError("This bundle is for $rate Hz; the app records at 16000 Hz. Choose another bundle.")
        if (labels.size != classes) {
            throw InputError("labels.txt has ${labels.size} labels for a model of $classes classes: export the bundle again.")
        }
        if (fields["input"] != "waveform" || fields["output"] != "prob") {
            throw InputError("This bundle takes ${fields["input"]}; the app needs waveform: export it with --input waveform.")
        }
        val listed = (fields["files"] as List<*>).map { it as Map<*, *> }
        for (one in listed) {
            val name = one["name"] as String
            // A name must not lead out of the bundle's folder.
            require('/' !in name && '\\' !in name && name != "." && name != "..") { "a file is named ${name.take(40)}" }
        }
        val file = listed
            .filter { (it["name"] as String).endsWith(".onnx") && it["kind"] in KINDS }
            .minByOrNull { KINDS.indexOf(it["kind"]) }
            ?: throw InputError("This bundle has no .onnx file, which the app runs: export it with --format onnx.")
        val name = file["name"] as String
        val window = (fields["window_s"] as JsonNumber).text.toDouble()
        val least = minSamples(frontend, spec)
        val most = minOf(MAX_WINDOW_S.toLong() * rate, (int(spec, "max_frames") - 1L) * int(frontend, "hop"))
        require(Math.round(window * rate) in least..most) { "a window of $window s" }
        return Bundle(
            name, file["kind"] as String, file["quantisation"] as String, int(file, "bytes").toLong(), file["sha256"] as String,
            fields["sha256"] as String, window, rate, least.toInt(), labels, thresholds(fields, labels),
        )
    }

    private fun thresholds(fields: Map<*, *>, labels: List<String>): Map<Int, Double> {
        val own = fields["thresholds"] ?: return emptyMap()
        return (own as Map<*, *>).entries.associate { (name, value) ->
            val on = (value as JsonNumber).text.toDouble()
            require(name in labels && on > 0 && on < 1) { "a threshold of ${"$name".take(40)}" }
            labels.indexOf(name) to on
        }
    }

    /** The shortest wave that gives a patch of frames, which is also more than reflection at the edges needs. */
    private fun minSamples(frontend: Map<*, *>, spec: Map<*, *>): Long =
        maxOf((int(spec, "patch") - 1L) * int(frontend, "hop"), int(frontend, "n_fft") / 2 + 1L)

    /** A number above 0: all of these count something, and a negative one would make a window of 0 samples pass. */
    private fun int(map: Map<*, *>, key: String) =
        (map[key] as? JsonNumber)?.text?.toIntOrNull()?.takeIf { it > 0 } ?: throw IllegalArgumentException("no $key")

    /**
     * Unpack a zip of a bundle's folder into [target], which must be empty. Folders inside the zip are flattened.
     * Raises InputError for a file that is no such zip.
     */
    fun unzip(stream: InputStream, target: File) {
        var total = 0L
        var count = 0
        ZipInputStream(stream).use { zip ->
            while (true) {
                val entry = try {
                    zip.nextEntry
                } catch (e: IllegalArgumentException) { // a name that is not UTF-8
                    throw InputError("The zip has file names that cannot be read: zip the folder again.")
                } ?: break
                // The last part alone: a name with .. must not leave the folder.
                val name = entry.name.replace('\\', '/').substringAfterLast('/')
                if (entry.isDirectory || !wanted(name)) continue
                if (++count > MAX_FILES) throw InputError("The zip holds more than $MAX_FILES files: choose a zip of one bundle.")
                File(target, name).outputStream().use { out ->
                    val buffer = ByteArray(1 shl 16)
                    val before = total
                    val isText = name.endsWith(".json") || name.endsWith(".txt")
                    while (true) {
                        val n = zip.read(buffer)
                        if (n < 0) break
                        total += n
                        if (isText && total - before > MAX_TEXT) throw InputError("$name is too large for a bundle: choose a zip of one bundle.")
                        if (total > MAX_ZIP) throw InputError("The zip is too large for a bundle: choose a zip of one bundle.")
                        out.write(buffer, 0, n)
                    }
                }
            }
        }
        if (count == 0) throw InputError("This file is no zip of a bundle: zip the folder that `ced-edge export` wrote.")
    }

    private fun wanted(name: String) = name == "bundle.json" || name == "labels.txt" || name.endsWith(".onnx") || name.endsWith(".tflite")

    fun sha256(bytes: ByteArray) = hex(MessageDigest.getInstance("SHA-256").digest(bytes))

    private fun sha256(stream: InputStream): String {
        val digest = MessageDigest.getInstance("SHA-256")
        val buffer = ByteArray(1 shl 16)
        while (true) {
            val n = stream.read(buffer)
            if (n < 0) return hex(digest.digest())
            digest.update(buffer, 0, n)
        }
    }

    private fun hex(bytes: ByteArray) = bytes.joinToString("") { String.format("%02x", it) }
}
