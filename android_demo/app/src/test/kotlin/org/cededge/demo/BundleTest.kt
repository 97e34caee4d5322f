package org.cededge.demo

import android.net.Uri
import com.sun.management.ThreadMXBean
import java.io.ByteArrayOutputStream
import java.io.File
import java.lang.management.ManagementFactory
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import org.cededge.demo.core.BundleReader
import org.cededge.demo.core.Json
import org.cededge.demo.core.JsonNumber
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** Another bundle than the one in the APK, opened from storage. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [26, 35], qualifiers = "w411dp-h731dp-port-xhdpi")
class BundleTest {
    @Before @After fun finishWork() = afterWork()

    private fun zip(vararg files: Pair<String, ByteArray>) = ByteArrayOutputStream().also { out ->
        ZipOutputStream(out).use { z -> for ((name, bytes) in files) z.run { putNextEntry(ZipEntry(name)); write(bytes) } }
    }.toByteArray()

    /** Returns how many bytes the loading took from the heap. */
    private fun open(bytes: ByteArray): Long {
        val address = Uri.parse("content://files/bundle.zip")
        shadowOf(app.contentResolver).registerInputStream(address, bytes.inputStream())
        val threads = ManagementFactory.getThreadMXBean() as ThreadMXBean
        var taken = 0L
        center.afterWork { taken -= threads.getThreadAllocatedBytes(Thread.currentThread().id) }
        center.openBundle(address.toString())
        center.afterWork { taken += threads.getThreadAllocatedBytes(Thread.currentThread().id) }
        afterWork()
        return taken
    }

    @Test fun aBundleFromStorage() {
        val folder = File(System.getProperty("bundle"))
        val model = folder.list()!!.single { it.endsWith("-int8.onnx") }
        val files = listOf("bundle.json", "labels.txt", model).map { "b/$it" to File(folder, it).readBytes() }
        val taken = open(zip(*files.toTypedArray()))
        assertTrue("$taken bytes: a model of hundreds of MB would not fit", taken < File(folder, model).length())
        val a = launch().setup().get()
        assertEquals(app.getString(R.string.idle), a.text(R.id.status))
        assertNotNull("kept for the next start", Store(app).bundleFolder())
        center.useBuiltIn()
        afterWork()
        assertNull(Store(app).bundleFolder())
        assertNotNull(center.bundle)
    }

    @Test fun aBadBundleIsRefusedAndTheOldOneStays() {
        val a = launch().setup().get()
        val folder = File(System.getProperty("bundle"))
        val json = File(folder, "bundle.json").readBytes()
        open(zip("bundle.json" to json, "labels.txt" to "Dog\n".toByteArray()))
        until("the app shows why") { "labels.txt is not the file that was exported" in a.text(R.id.status) }
        open("no zip".toByteArray())
        until("the app shows what to do") { "zip the folder" in a.text(R.id.status) }
        assertNotNull(center.bundle)
        assertNull(Store(app).bundleFolder())
    }

    /** The bundle's int8 file is another model here, and every hash is right. */
    private fun bundleWith(model: ByteArray): ByteArray {
        val folder = File(System.getProperty("bundle"))
        val fields = Json.parse(File(folder, "bundle.json").readText()) as Map<*, *> - "sha256" - "files"
        val file = mapOf(
            "name" to "other-int8.onnx", "kind" to "int8", "quantisation" to "none", "bytes" to JsonNumber("${model.size}"),
            "sha256" to BundleReader.sha256(model),
        )
        val all = fields + ("files" to listOf(file))
        val json = Json.canonical(all + ("sha256" to BundleReader.sha256(Json.canonical(all).toByteArray())))
        return zip("bundle.json" to json.toByteArray(), "labels.txt" to File(folder, "labels.txt").readBytes(), "other-int8.onnx" to model)
    }

    @Test fun aModelThatTheEngineRefusesDoesNotEndTheApp() {
        val a = launch().setup().get()
        for (model in listOf(TWO_INPUTS, TWO_OUTPUTS)) {
            open(bundleWith(model))
            until("the app shows why") { "other inputs or outputs" in a.text(R.id.status) }
            assertNull("not tried again at the next start", Store(app).bundleFolder())
            assertNotNull("the built-in one takes its place", center.bundle)
            center.useBuiltIn()
            afterWork()
        }
    }
}
