package org.cededge.demo.engine

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import org.cededge.demo.core.Bundle
import org.cededge.demo.core.Engine
import org.cededge.demo.core.InputError
import org.cededge.demo.core.Json

/**
 * A .onnx file on ONNX Runtime's CPU provider. Input and output lie in buffers that are used again for every window;
 * ONNX Runtime itself makes a few small objects a call. [model] is direct or mapped, and not needed afterwards.
 * Not above 1.28: 1.29 reports to its maker.
 */
class OrtEngine(model: ByteBuffer, private val bundle: Bundle, threads: Int = 1) : Engine {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession
    private val input = floats(bundle.windowSamples)
    private val output = floats(bundle.labels.size)
    private var outTensor: OnnxTensor
    private var tensor: OnnxTensor? = null
    private var inputs: Map<String, OnnxTensor> = emptyMap()
    private val outputs: Map<String, OnnxTensor>
    private val inputName: String
    private var shape = 0
    private var closed = false

    override val runtime = "ONNX Runtime ${environment.version}"

    init {
        // Native memory: nobody can close it where the constructor throws.
        val open = ArrayList<AutoCloseable>()
        try {
            session = OrtSession.SessionOptions().use { options ->
                options.setIntraOpNumThreads(threads)
                options.setInterOpNumThreads(1)
                // Threads that wait by spinning would drain the battery between two windows.
                options.addConfigEntry("session.intra_op.allow_spinning", "0")
                environment.createSession(model, options)
            }
            open += session
            if (session.inputNames.size != 1 || session.outputNames.size != 1) {
                throw InputError("The model has other inputs or outputs than the app needs: export the bundle again.")
            }
            inputName = session.inputNames.first()
            outTensor = OnnxTensor.createTensor(environment, output, longArrayOf(1, bundle.labels.size.toLong()))
            open += outTensor
            outputs = mapOf(session.outputNames.first() to outTensor)
            // A file that names other labels than the bundle would show wrong words.
            val names = session.metadata.customMetadata["labels"]?.let { Json.parse(it) }
            if (names != null && names != bundle.labels) throw InputError("The model has other labels than labels.txt: export the bundle again.")
        } catch (e: Exception) {
            for (resource in open.asReversed()) resource.close()
            if (e !is OrtException) throw e
            throw InputError("${bundle.modelFile} is no model that ONNX Runtime ${environment.version} runs: export the bundle again.")
        }
    }

    override fun predict(window: FloatArray, count: Int, probs: FloatArray) {
        check(!closed) { "the engine is closed" }
        try {
            if (count != shape) reshape(count)
            input.clear()
            input.put(window, 0, count)
            session.run(inputs, emptySet(), outputs).close()
            output.clear()
            output.get(probs)
        } catch (e: OrtException) {
            throw InputError("The model failed on ${count / bundle.rateHz} s of sound: load another bundle.")
        }
    }

    /** The tensor is made anew only where the window's length changed. */
    private fun reshape(count: Int) {
        tensor?.close()
        input.clear()
        input.limit(count)
        tensor = OnnxTensor.createTensor(environment, input.slice(), longArrayOf(1, count.toLong()))
        inputs = mapOf(inputName to tensor!!)
        shape = count
    }

    override fun close() {
        if (closed) return
        closed = true
        tensor?.close()
        outTensor.close()
        session.close()
    }

    private fun floats(n: Int): FloatBuffer = ByteBuffer.allocateDirect(4 * n).order(ByteOrder.nativeOrder()).asFloatBuffer()
}
