package org.cededge.demo.core

import java.io.OutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone

/** Events as CSV: when each began (UTC), start and end in seconds of its stream, its class, its highest probability. */
fun csv(entries: List<Entry>): String = buildString {
    val clock = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss.SSS'Z'", Locale.ROOT)
    clock.timeZone = TimeZone.getTimeZone("UTC")
    append("time,start_s,end_s,index,label,peak\n")
    for (e in entries) {
        val label = "\"" + e.label.replace("\"", "\"\"") + "\""
        // Locale.ROOT: the decimal sign is a point in every country.
        append(String.format(Locale.ROOT, "%s,%.3f,%.3f,%d,%s,%.4f\n", clock.format(Date(e.atMs)), e.event.startS, e.event.endS, e.event.index, label, e.event.peak))
    }
}

/** Write [samples] in [-1, 1] as a mono 16-bit WAV file. */
fun writeWav(samples: FloatArray, rateHz: Int, out: OutputStream) {
    val size = 2 * samples.size
    val b = ByteBuffer.allocate(44 + size).order(ByteOrder.LITTLE_ENDIAN)
    b.put("RIFF".toByteArray()).putInt(36 + size).put("WAVEfmt ".toByteArray()).putInt(16)
    b.putShort(1).putShort(1).putInt(rateHz).putInt(2 * rateHz).putShort(2).putShort(16)
    b.put("data".toByteArray()).putInt(size)
    for (x in samples) b.putShort(Math.round(x * 32767f).coerceIn(-32768, 32767).toShort())
    out.write(b.array())
}
