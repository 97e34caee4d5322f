package org.cededge.demo.core

/** Input that cannot be used. The message is one sentence for the user, with what to do about it. */
class InputError(message: String) : Exception(message)

/**
 * Which samples a window covers, and what happens at the end of the sound. The same rule as `ced_edge/windows.py`:
 * windows start at 0, hop, 2 hop, ...; at the end one more window takes the samples that no full window holds.
 */
object Windows {
    /** Windows that the first [samples] samples fill. */
    fun full(samples: Long, window: Int, hop: Int): Long {
        require(hop in 1..window) { "a hop of $hop samples does not fit a window of $window" }
        return if (samples < window) 0 else 1 + (samples - window) / hop
    }

    /** All windows of a sound of [samples] samples, the short last one included. */
    fun all(samples: Long, window: Int, hop: Int): Long {
        val n = full(samples, window, hop)
        val covered = if (n > 0) (n - 1) * hop + window else 0
        return if (covered < samples) n + 1 else n
    }
}
