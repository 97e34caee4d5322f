package org.cededge.demo.core

import kotlin.math.PI
import kotlin.math.cos
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.min
import kotlin.math.pow
import kotlin.math.sin

/**
 * One column of the spectrogram strip: 512 samples -> 64 mel bands in dB, with the model's own front end.
 * It is for the eye alone: the model computes its input itself.
 */
class Mel(rateHz: Int = 16_000) {
    private val re = DoubleArray(SIZE)
    private val im = DoubleArray(SIZE)
    private val hann = DoubleArray(SIZE) { 0.5 - 0.5 * cos(2 * PI * it / SIZE) }
    private val filters: Array<DoubleArray>
    private val firstBin: IntArray

    init {
        val top = 2595 * log10(1 + rateHz / 2.0 / 700)
        val edges = DoubleArray(BANDS + 2) { 700 * (10.0.pow(top * it / (BANDS + 1) / 2595) - 1) }
        val bins = DoubleArray(SIZE / 2 + 1) { it * rateHz / SIZE.toDouble() }
        val full = Array(BANDS) { m ->
            DoubleArray(bins.size) {
                val rising = (bins[it] - edges[m]) / (edges[m + 1] - edges[m])
                val falling = (edges[m + 2] - bins[it]) / (edges[m + 2] - edges[m + 1])
                max(0.0, min(rising, falling))
            }
        }
        firstBin = IntArray(BANDS) { m -> full[m].indexOfFirst { it > 0 }.coerceAtLeast(0) }
        filters = Array(BANDS) { m ->
            val last = full[m].indexOfLast { it > 0 }
            full[m].copyOfRange(firstBin[m], max(firstBin[m], last) + 1)
        }
    }

    /** [SIZE] samples of [wave] from [at] on -> [BANDS] values in [db]. */
    fun column(wave: FloatArray, at: Int, db: FloatArray) {
        for (i in 0 until SIZE) {
            re[i] = wave[at + i] * hann[i]
            im[i] = 0.0
        }
        fft()
        for (m in 0 until BANDS) {
            var sum = 0.0
            for (i in filters[m].indices) {
                val k = firstBin[m] + i
                sum += filters[m][i] * (re[k] * re[k] + im[k] * im[k])
            }
            db[m] = (10 * log10(max(sum, 1e-10))).toFloat()
        }
    }

    /** Radix-2 FFT in place. */
    private fun fft() {
        var j = 0
        for (i in 1 until SIZE) {
            var bit = SIZE shr 1
            while (j and bit != 0) {
                j = j xor bit
                bit = bit shr 1
            }
            j = j or bit
            if (i < j) {
                val r = re[i]; re[i] = re[j]; re[j] = r
                val m = im[i]; im[i] = im[j]; im[j] = m
            }
        }
        var length = 2
        while (length <= SIZE) {
            var i = 0 // a `step` would make an object for every stage
            while (i < SIZE) {
                for (k in 0 until length / 2) {
                    val c = COS[k * (SIZE / length)]
                    val s = SIN[k * (SIZE / length)]
                    val a = i + k
                    val b = a + length / 2
                    val r = re[b] * c - im[b] * s
                    val m = re[b] * s + im[b] * c
                    re[b] = re[a] - r
                    im[b] = im[a] - m
                    re[a] += r
                    im[a] += m
                }
                i += length
            }
            length *= 2
        }
    }

    companion object {
        const val SIZE = 512
        const val BANDS = 64
        private val COS = DoubleArray(SIZE / 2) { cos(-2 * PI * it / SIZE) }
        private val SIN = DoubleArray(SIZE / 2) { sin(-2 * PI * it / SIZE) }
    }
}
