package org.cededge.demo.core

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.sin
import kotlin.math.sqrt

/**
 * Mono samples at any whole rate -> samples at [toHz], piece by piece, by a windowed sinc (Kaiser, about 100 dB).
 * Output sample i stands for the time of input sample i * from / to: there is no delay, only a wait for later input.
 */
class Resampler(fromHz: Int, toHz: Int) {
    private val up: Int
    private val down: Int
    private val half: Int // input samples on each side of an output sample
    private val taps: Array<FloatArray> // a filter per phase
    private var history: FloatArray
    private var have = 0 // samples in `history`
    private var first: Long // index of history[0]; negative: zeros before the beginning
    private var input = 0L
    private var output = 0L

    init {
        require(fits(fromHz, toHz))
        val g = gcd(fromHz, toHz)
        up = toHz / g
        down = fromHz / g
        val cutoff = cutoff(fromHz, toHz)
        half = half(fromHz, toHz)
        taps = Array(up) { phase ->
            val shift = phase.toDouble() / up
            val t = DoubleArray(2 * half) { tap(it - half + 1 - shift, cutoff, half) }
            val sum = t.sum() // constant input must stay constant in every phase
            FloatArray(2 * half) { (t[it] / sum).toFloat() }
        }
        history = FloatArray(8192 + 2 * half)
        have = half
        first = -half.toLong()
    }

    /** The most samples that [count] more input samples can give. */
    fun room(count: Int) = (count.toLong() * up / down).toInt() + 2 * half * up / down + 2

    /** Take [count] samples; write what is complete to [target] and return how many. */
    fun process(samples: FloatArray, count: Int, target: FloatArray): Int {
        append(samples, count)
        input += count
        return emit(target, 0, Long.MAX_VALUE)
    }

    /** No more input: write the rest to [target]. In all, ceil(input * to / from) samples come out. */
    fun finish(target: FloatArray): Int {
        append(FloatArray(half), half)
        return emit(target, 0, (input * up + down - 1) / down)
    }

    private fun append(samples: FloatArray, count: Int) {
        if (have + count > history.size) {
            // Drop what no later output needs; grow only where one piece is larger than all before.
            val keep = maxOf(first, output * down / up - half)
            val gone = (keep - first).toInt()
            val target = if (have - gone + count > history.size) FloatArray(2 * (have + count)) else history
            System.arraycopy(history, gone, target, 0, have - gone)
            history = target
            have -= gone
            first = keep
        }
        System.arraycopy(samples, 0, history, have, count)
        have += count
    }

    private fun emit(target: FloatArray, from: Int, limit: Long): Int {
        var n = from
        while (output < limit) {
            val centre = output * down / up
            val start = (centre - half + 1 - first).toInt()
            if (start + 2 * half > have) break
            val filter = taps[(output * down % up).toInt()]
            var sum = 0f
            for (i in filter.indices) sum += filter[i] * history[start + i]
            target[n++] = sum
            output++
        }
        return n
    }

    companion object {
        private const val ZEROS = 32.0 // zero crossings of the sinc on each side
        private const val BETA = 9.0
        private const val MAX_TAPS = 4_000_000 // 16 MB; 44,099 Hz needs 3 million, 48,000 Hz needs 206

        /** Whether a phone has room for the filters: rates without a common divisor need thousands. */
        fun fits(fromHz: Int, toHz: Int) = fromHz > 0 && toHz > 0 && 2L * half(fromHz, toHz) * (toHz / gcd(fromHz, toHz)) <= MAX_TAPS

        /** Of the input's Nyquist frequency. */
        private fun cutoff(fromHz: Int, toHz: Int) = 0.94 * minOf(1.0, toHz.toDouble() / fromHz)

        private fun half(fromHz: Int, toHz: Int) = ceil(ZEROS / cutoff(fromHz, toHz)).toInt()

        private fun gcd(a: Int, b: Int): Int = if (b == 0) a else gcd(b, a % b)

        private fun tap(x: Double, cutoff: Double, half: Int): Double {
            val r = x / half
            if (abs(r) >= 1) return 0.0
            val sinc = if (x == 0.0) cutoff else sin(PI * cutoff * x) / (PI * x)
            return sinc * bessel(BETA * sqrt(1 - r * r)) / bessel(BETA)
        }

        /** Modified Bessel function of order 0, as a power series. */
        private fun bessel(x: Double): Double {
            var sum = 1.0
            var term = 1.0
            var k = 1
            while (term > 1e-12 * sum) {
                term *= (x / (2 * k)) * (x / (2 * k))
                sum += term
                k++
            }
            return sum
        }
    }
}
