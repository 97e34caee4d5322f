package org.cededge.demo.core

import kotlin.math.exp

/**
 * Several channels -> one, piece by piece, as `ced_edge/audio/mix.py`: their mean, or the loudest channel alone where the
 * channels cancel each other, as with a microphone that is wired the wrong way round. Decided for every tenth of a second.
 */
class Mixer(private val channels: Int, rateHz: Int) {
    private val block = maxOf(1, Math.round(BLOCK_S * rateHz).toInt())
    private val fade = exp(-block / rateHz.toDouble() / FADE_S)
    private val held = FloatArray(block * channels)
    private var heldFrames = 0
    private val power = DoubleArray(channels) // fading sums of squares
    private var meanPower = 0.0
    private var frames = 0.0
    private var loudest = -1 // the channel that replaces the mean, or -1

    /** The most samples that [count] more frames can give. */
    fun room(count: Int) = count + block

    /** Take [count] interleaved frames; write the samples that are decided to [target] and return how many. */
    fun push(samples: FloatArray, count: Int, target: FloatArray): Int {
        var done = 0
        var out = 0
        while (done < count) {
            val n = minOf(block - heldFrames, count - done)
            System.arraycopy(samples, done * channels, held, heldFrames * channels, n * channels)
            heldFrames += n
            done += n
            if (heldFrames == block) out = mix(target, out)
        }
        return out
    }

    /** No more frames: write the last, incomplete block to [target]. */
    fun finish(target: FloatArray): Int = if (heldFrames == 0) 0 else mix(target, 0)

    private fun mix(target: FloatArray, at: Int): Int {
        var mean = 0.0
        for (c in 0 until channels) power[c] *= fade
        for (i in 0 until heldFrames) {
            var sum = 0f
            for (c in 0 until channels) {
                val x = held[i * channels + c]
                sum += x
                power[c] += x.toDouble() * x
            }
            target[at + i] = sum / channels
            mean += target[at + i].toDouble() * target[at + i]
        }
        meanPower = fade * meanPower + mean
        frames = fade * frames + heldFrames
        decide()
        if (loudest >= 0) for (i in 0 until heldFrames) target[at + i] = held[i * channels + loudest]
        return (at + heldFrames).also { heldFrames = 0 }
    }

    private fun decide() {
        val top = power.max()
        if (top <= QUIET * frames) return
        val alone = top / (channels * channels) // the mean's power if the other channels were silent
        loudest = when {
            loudest < 0 -> if (meanPower < GIVE_UP * alone) strongest(top) else -1
            meanPower > USE_AGAIN * alone -> -1
            top > LOUDER * power[loudest] -> strongest(top)
            else -> loudest
        }
    }

    /** The first channel that is about as strong as the strongest one: rounding must not decide. */
    private fun strongest(top: Double) = power.indexOfFirst { it > 0.9 * top }

    private companion object {
        const val BLOCK_S = 0.1
        const val FADE_S = 3.0
        const val GIVE_UP = 0.4
        const val USE_AGAIN = 0.8
        const val QUIET = 1e-9
        const val LOUDER = 4.0
    }
}
