package org.cededge.demo.core

/** A loaded model. One instance serves one thread at a time. */
interface Engine : AutoCloseable {
    /** Such as "ONNX Runtime 1.26.0". */
    val runtime: String

    /** Predict the first [count] samples of [window] (16 kHz, in [-1, 1]) into [probs]. Raises InputError. */
    fun predict(window: FloatArray, count: Int, probs: FloatArray)
}

/**
 * Windows over samples that come in pieces, as `StreamingTagger` in Python: how the sound is cut changes nothing.
 * Window and hop can be changed at any time; the next window then begins at the newest sample.
 */
class Stream(private val engine: Engine, val bundle: Bundle, private val ring: Ring = Ring(KEPT_S * bundle.rateHz)) {
    var window = bundle.windowSamples
        private set
    var hop = window
        private set
    var finished = false
        private set
    private val scratch = FloatArray(bundle.windowSamples)
    private var base = 0L // where window 0 begins, after the last change of window or hop
    private var next = 0L

    init {
        require(ring.capacity > bundle.windowSamples)
    }

    /** Samples so far. */
    val samples get() = ring.end

    /** Set window and hop in samples. Raises InputError where they do not fit the model. */
    fun configure(window: Int, hop: Int) {
        if (window !in bundle.minSamples..bundle.windowSamples) {
            throw InputError("A window of ${window.toDouble() / bundle.rateHz} s does not fit this model: choose at most ${bundle.windowS} s.")
        }
        if (hop !in 1..window) throw InputError("The hop must be longer than 0 and not longer than the window.")
        this.window = window
        this.hop = hop
        restart()
    }

    /** The next window begins at the next sample. */
    fun restart() {
        base = ring.end
        next = 0
    }

    fun accept(samples: FloatArray, count: Int) {
        check(!finished) { "the stream is finished" }
        ring.write(samples, 0, count)
    }

    /** No more samples will come: what is left becomes a last, shorter window. */
    fun finish() {
        finished = true
    }

    /** Windows that can be predicted now. */
    fun ready(): Long {
        val n = if (finished) Windows.all(ring.end - base, window, hop) else Windows.full(ring.end - base, window, hop)
        return n - next
    }

    /**
     * Copy the next window out of the ring. Returns how many samples it has; one must be ready. The caller then calls
     * [predict] without its lock.
     * A window whose samples were overwritten already cannot be predicted: the caller skips before that happens.
     */
    fun take(tags: Tags): Int {
        check(ready() > 0) { "no window is ready" }
        val from = base + next * hop
        val to = minOf(from + window, ring.end)
        next++
        ring.read(from, to, scratch)
        tags.startS = from.toDouble() / bundle.rateHz
        tags.endS = to.toDouble() / bundle.rateHz
        return (to - from).toInt()
    }

    /** Predict the window that [take] copied. */
    fun predict(count: Int, tags: Tags) {
        var n = count
        // The model needs a few samples at least; zeros fill what is missing, as in Python.
        if (n < bundle.minSamples) {
            scratch.fill(0f, n, bundle.minSamples)
            n = bundle.minSamples
        }
        engine.predict(scratch, n, tags.probs)
        for (p in tags.probs) if (p.isNaN()) throw InputError("The model gives no numbers: it is broken. Load another bundle.")
    }

    /** Leave out windows until at most [most] wait: a phone that is too slow must. Returns how many. */
    fun skip(most: Long): Long {
        val n = maxOf(0L, ready() - most)
        next += n
        return n
    }

    /** Copy [from, to) seconds of what is still kept, or null. */
    fun sound(fromS: Double, toS: Double): FloatArray? {
        val from = maxOf(ring.start, (fromS * bundle.rateHz).toLong())
        val to = minOf(ring.end, (toS * bundle.rateHz).toLong())
        if (to <= from) return null
        return FloatArray((to - from).toInt()).also { ring.read(from, to, it) }
    }

    companion object {
        /** Seconds of sound that are kept: the longest window, time to catch up, and an event to save. */
        const val KEPT_S = 40
    }
}
