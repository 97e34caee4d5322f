package org.cededge.arm

import com.github.unidbg.AndroidEmulator
import com.github.unidbg.Module
import com.github.unidbg.arm.backend.DynarmicFactory
import com.github.unidbg.linux.android.AndroidEmulatorBuilder
import com.github.unidbg.linux.android.AndroidResolver
import com.github.unidbg.pointer.UnidbgPointer
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Files
import java.util.zip.ZipFile
import kotlin.math.abs
import kotlin.system.exitProcess

/**
 * Runs libonnxruntime.so for arm64 out of an APK, with the model out of that APK, on an emulated processor with Android's
 * own linker and C library, and compares with what x86 predicted. It proves numerics, and nothing about speed.
 * Arguments: the APK, a file of float32 samples, and a file of float32 probabilities. unidbg is for tests alone.
 */
private const val API_VERSION = 26

// Places in the table OrtApi of onnxruntime_c_api.h; they never change.
private const val ERROR_MESSAGE = 2
private const val CREATE_ENV = 3
private const val CREATE_SESSION_FROM_ARRAY = 8
private const val RUN = 9
private const val CREATE_SESSION_OPTIONS = 10
private const val SET_INTRA_OP_THREADS = 24
private const val SET_INTER_OP_THREADS = 25
private const val SESSION_INPUT_NAME = 36
private const val SESSION_OUTPUT_NAME = 37
private const val CREATE_TENSOR_WITH_DATA = 49
private const val TENSOR_DATA = 51
private const val CREATE_CPU_MEMORY_INFO = 69
private const val DEFAULT_ALLOCATOR = 78
private const val FLOAT32 = 1

private class Ort(private val emulator: AndroidEmulator, library: File) {
    private val api: UnidbgPointer

    init {
        val module = emulator.loadLibrary(library, true)
        val base = pointer(module.callFunction(emulator, "OrtGetApiBase").toLong())
        println("ONNX Runtime ${pointer(Module.emulateFunction(emulator, base.getLong(8)).toLong()).getString(0)} for arm64")
        api = pointer(Module.emulateFunction(emulator, base.getLong(0), API_VERSION).toLong())
    }

    fun pointer(address: Long): UnidbgPointer = UnidbgPointer.pointer(emulator, address)

    fun memory(bytes: Int): UnidbgPointer = emulator.memory.malloc(bytes, true).pointer

    fun memory(bytes: ByteArray): UnidbgPointer = memory(bytes.size).also { it.write(0, bytes, 0, bytes.size) }

    fun memory(vararg values: Long): UnidbgPointer = memory(8 * values.size).also { p -> values.forEachIndexed { i, v -> p.setLong(8L * i, v) } }

    fun call(place: Int, vararg arguments: Any) {
        val status = Module.emulateFunction(emulator, api.getLong(8L * place), *arguments).toLong()
        if (status == 0L) return
        val text = Module.emulateFunction(emulator, api.getLong(8L * ERROR_MESSAGE), status).toLong()
        throw IllegalStateException("function $place of OrtApi: ${pointer(text).getString(0)}")
    }

    /** Call a function whose last argument is where its result goes. */
    fun make(place: Int, vararg arguments: Any): Long = memory(0L).let { out ->
        call(place, *arguments, out)
        out.getLong(0)
    }
}

private fun predict(ort: Ort, model: ByteArray, wave: FloatArray, classes: Int): FloatArray {
    val env = ort.make(CREATE_ENV, 3, ort.memory("test\u0000".toByteArray()))
    val options = ort.make(CREATE_SESSION_OPTIONS)
    ort.call(SET_INTRA_OP_THREADS, options, 1)
    ort.call(SET_INTER_OP_THREADS, options, 1)
    val session = ort.make(CREATE_SESSION_FROM_ARRAY, env, ort.memory(model), model.size.toLong(), options)
    val allocator = ort.make(DEFAULT_ALLOCATOR)
    val input = ort.make(SESSION_INPUT_NAME, session, 0L, allocator)
    val output = ort.make(SESSION_OUTPUT_NAME, session, 0L, allocator)
    val samples = ort.memory(4 * wave.size).also { it.write(0, wave, 0, wave.size) }
    val cpu = ort.make(CREATE_CPU_MEMORY_INFO, 0, 0)
    val shape = ort.memory(1L, wave.size.toLong())
    val tensor = ort.make(CREATE_TENSOR_WITH_DATA, cpu, samples, 4L * wave.size, shape, 2L, FLOAT32)
    val result = ort.memory(0L)
    ort.call(RUN, session, 0L, ort.memory(input), ort.memory(tensor), 1L, ort.memory(output), 1L, result)
    return ort.pointer(ort.make(TENSOR_DATA, result.getLong(0))).getFloatArray(0, classes)
}

private fun floats(path: String): FloatArray =
    ByteBuffer.wrap(File(path).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().let { b -> FloatArray(b.remaining()) { b.get(it) } }

fun main(arguments: Array<String>) {
    val wave = floats(arguments[1])
    val expected = floats(arguments[2])
    val folder = Files.createTempDirectory("arm").toFile()
    val library = File(folder, "libonnxruntime.so")
    val (model, labels) = ZipFile(arguments[0]).use { apk ->
        library.writeBytes(apk.getInputStream(apk.getEntry("lib/arm64-v8a/libonnxruntime.so")).readBytes())
        val entry = apk.entries().toList().single { it.name.endsWith(".onnx") }
        apk.getInputStream(entry).readBytes() to apk.getInputStream(apk.getEntry("assets/bundle/labels.txt")).reader().readLines()
    }
    val emulator = AndroidEmulatorBuilder.for64Bit().setProcessName("org.cededge.demo").setRootDir(File(folder, "root"))
        .addBackendFactory(DynarmicFactory(true)).build()
    emulator.memory.setLibraryResolver(AndroidResolver(23))
    val probs = predict(Ort(emulator, library), model, wave, expected.size)
    folder.deleteRecursively()
    val top = probs.indices.maxByOrNull { probs[it] }!!
    val wanted = expected.indices.maxByOrNull { expected[it] }!!
    val error = probs.indices.maxOf { abs(probs[it] - expected[it]) }
    println("arm64: ${labels[top]} ${probs[top]}, x86: ${labels[wanted]} ${expected[wanted]}, largest difference $error")
    val good = top == wanted && error <= 0.01f
    println(if (good) "1 passed, 0 failed" else "0 passed, 1 failed")
    exitProcess(if (good) 0 else 1) // unidbg's threads would keep the JVM alive
}
