package org.cededge.demo

import android.content.Context
import java.io.File
import java.io.FileInputStream
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.channels.FileChannel.MapMode.READ_ONLY
import org.cededge.demo.core.BundleFiles
import org.cededge.demo.core.BundleReader
import org.cededge.demo.core.Folder
import org.cededge.demo.core.InputError
import org.cededge.demo.core.Settings

/** What the app keeps on the phone: the settings, and the bundle that the user chose. */
class Store(private val context: Context) {
    private val preferences = context.getSharedPreferences("settings", Context.MODE_PRIVATE)
    private val folder = File(context.filesDir, "bundle")
    private val incoming = File(context.filesDir, "bundle.new")

    fun settings() = Settings().let { d ->
        Settings(
            preferences.getFloat("window", d.windowS.toFloat()).toDouble(), preferences.getFloat("hop", d.hopS.toFloat()).toDouble(),
            preferences.getInt("threshold", (100 * d.threshold).toInt()) / 100.0, preferences.getInt("smooth", d.smooth),
            preferences.getBoolean("keepSound", d.keepSound), preferences.getString("source", d.source)!!, preferences.getString("device", d.device)!!,
        )
    }

    fun save(s: Settings) = preferences.edit()
        .putFloat("window", s.windowS.toFloat()).putFloat("hop", s.hopS.toFloat())
        .putInt("threshold", Math.round(100 * s.threshold).toInt()).putInt("smooth", s.smooth)
        .putBoolean("keepSound", s.keepSound).putString("source", s.source).putString("device", s.device).apply()

    fun builtIn() = object : BundleFiles {
        override fun open(name: String) = try {
            context.assets.open("bundle/$name")
        } catch (e: IOException) {
            null
        }

        // The model is stored in the APK without compression, so it can be mapped from there.
        override fun map(name: String): ByteBuffer = context.assets.openFd("bundle/$name").use { part ->
            FileInputStream(part.fileDescriptor).channel.map(READ_ONLY, part.startOffset, part.length)
        }
    }

    fun bundleFolder(): BundleFiles? = if (folder.isDirectory) Folder(folder) else null

    /** Check a zip of a bundle, and only then let it take the place of the old one. Raises InputError. */
    fun replaceBundle(zip: InputStream) {
        incoming.deleteRecursively()
        if (!incoming.mkdirs()) throw InputError("There is no room for the bundle: free some storage.")
        try {
            zip.use { BundleReader.unzip(it, incoming) }
            BundleReader.read(Folder(incoming))
            folder.deleteRecursively()
            if (!incoming.renameTo(folder)) throw InputError("There is no room for the bundle: free some storage.")
        } finally {
            incoming.deleteRecursively()
        }
    }

    fun removeBundle() {
        folder.deleteRecursively()
    }
}
