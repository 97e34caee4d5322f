package org.cededge.demo.service

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException

/** Gives other apps the files that the user shares, each only after the user chose it: CSV lists and sounds. */
class ShareProvider : ContentProvider() {
    override fun onCreate() = true

    override fun getType(uri: Uri) = if (uri.lastPathSegment?.endsWith(".wav") == true) "audio/wav" else "text/csv"

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        if (mode != "r") throw FileNotFoundException("shared files can only be read")
        return ParcelFileDescriptor.open(file(uri), ParcelFileDescriptor.MODE_READ_ONLY)
    }

    override fun query(uri: Uri, projection: Array<String>?, selection: String?, args: Array<String>?, order: String?): Cursor {
        val columns = projection ?: arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE)
        val file = file(uri)
        return MatrixCursor(columns).apply {
            addRow(columns.map { if (it == OpenableColumns.SIZE) file.length() else if (it == OpenableColumns.DISPLAY_NAME) file.name else null })
        }
    }

    /** The last part of the address alone counts, so no address leads out of the folder. */
    private fun file(uri: Uri): File {
        val file = File(folder(context!!), File(uri.lastPathSegment ?: "").name)
        if (!file.isFile) throw FileNotFoundException("no such file: $uri")
        return file
    }

    override fun insert(uri: Uri, values: ContentValues?): Uri? = throw UnsupportedOperationException()

    override fun update(uri: Uri, values: ContentValues?, selection: String?, args: Array<String>?): Int = throw UnsupportedOperationException()

    override fun delete(uri: Uri, selection: String?, args: Array<String>?): Int = throw UnsupportedOperationException()

    companion object {
        fun folder(context: Context) = File(context.cacheDir, "share").apply { mkdirs() }

        /** The address under which another app reads the file [name] of the folder. */
        fun address(context: Context, name: String): String =
            Uri.Builder().scheme("content").authority("${context.packageName}.share").appendPath(name).build().toString()
    }
}
