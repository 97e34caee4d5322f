package org.cededge.demo.core

import kotlin.math.abs
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.sqrt

/** Loudness of the newest piece in dB below full scale, and for how long the samples have all been zero. */
class Level {
    /** Root mean square of the last piece, in dBFS: 0 is a full-scale square wave. Never below [FLOOR_DB]. */
    var rmsDb = FLOOR_DB
        private set
    var peakDb = FLOOR_DB
        private set

    /** Samples in a row that were exactly zero. A real microphone always has noise. */
    var zeros = 0L
        private set

    fun add(samples: FloatArray, count: Int) {
        if (count == 0) return
        var sum = 0.0
        var peak = 0f
        for (i in 0 until count) {
            val x = abs(samples[i])
            sum += x.toDouble() * x
            peak = max(peak, x)
            zeros = if (x == 0f) zeros + 1 else 0
        }
        rmsDb = db(sqrt(sum / count))
        peakDb = db(peak.toDouble())
    }

    companion object {
        const val FLOOR_DB = -100.0

        fun db(amplitude: Double) = if (amplitude <= 1e-5) FLOOR_DB else 20 * log10(amplitude)
    }
}
