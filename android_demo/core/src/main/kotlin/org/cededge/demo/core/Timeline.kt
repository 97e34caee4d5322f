package org.cededge.demo.core

/**
 * What the scrolling picture shows: mel columns of the last [SECONDS], the loudest frame of every 50 ms.
 * Fixed memory; not thread-safe.
 */
class Timeline(private val rateHz: Int = 16_000) {
    private val mel = Mel(rateHz)
    private val frame = FloatArray(Mel.SIZE)
    private var filled = 0
    private val db = FloatArray(Mel.BANDS)
    private val loudest = FloatArray(Mel.BANDS)
    private var frames = 0

    /** Column i of the stream lies at (i % COLUMNS) * BANDS; 0 is -60 dB or less, 255 is +40 dB or more. */
    val pixels = ByteArray(COLUMNS * Mel.BANDS)

    /** Columns since the stream began. */
    var columns = 0L
        private set

    fun add(samples: FloatArray, count: Int) {
        var i = 0
        while (i < count) {
            val n = minOf(Mel.SIZE - filled, count - i)
            System.arraycopy(samples, i, frame, filled, n)
            filled += n
            i += n
            if (filled == Mel.SIZE) {
                addFrame()
                System.arraycopy(frame, HOP, frame, 0, Mel.SIZE - HOP)
                filled -= HOP
            }
        }
    }

    private fun addFrame() {
        mel.column(frame, 0, db)
        for (m in db.indices) loudest[m] = if (frames == 0) db[m] else maxOf(loudest[m], db[m])
        if (++frames < PER_COLUMN) return
        frames = 0
        val at = (columns % COLUMNS).toInt() * Mel.BANDS
        for (m in db.indices) pixels[at + m] = ((loudest[m] + 60) * 255 / 100).coerceIn(0f, 255f).toInt().toByte()
        columns++
    }

    companion object {
        const val SECONDS = 30
        const val HOP = 160
        const val PER_COLUMN = 5
        const val COLUMNS_PER_S = 20
        const val COLUMNS = SECONDS * COLUMNS_PER_S
    }
}
