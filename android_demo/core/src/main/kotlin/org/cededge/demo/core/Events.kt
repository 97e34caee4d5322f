package org.cededge.demo.core

/** What makes an event, as `EventRule` in `ced_edge/runtime/events.py`. */
data class EventRule(
    /** A window of at least this probability makes an event. */
    val on: Double = 0.4,
    /** Windows of at least this probability before and after it belong to the event. */
    val off: Double = 0.2,
    /** Shorter events are left out. */
    val minDurationS: Double = 0.0,
    /** Windows whose mean is taken first. */
    val smooth: Int = 1,
    /** Class index -> its own `on`; its `off` is half of it. */
    val classes: Map<Int, Double> = emptyMap(),
) {
    init {
        require(off > 0 && off <= on && on <= 1) { "thresholds on $on and off $off: 0 < off <= on <= 1" }
        require(classes.values.all { it > 0 && it <= 1 }) { "thresholds $classes" }
        require(minDurationS >= 0 && smooth >= 1)
    }
}

/** A sound of class [index] from [startS] to [endS] seconds; [peak] is its highest probability after smoothing. */
data class Event(val index: Int, val startS: Double, val endS: Double, val peak: Double)

/**
 * From the predictions of overlapping windows to events: smoothing, two thresholds, least duration.
 * A window stands for the time nearest to its centre, so the border of two windows lies midway between their centres.
 */
class Events(val rule: EventRule, private val classes: Int) {
    // The last `smooth` windows, in a ring that is filled again and again.
    private val recent = Array(rule.smooth) { FloatArray(classes) }
    private val centres = DoubleArray(rule.smooth)
    private var count = 0
    private var next = 0
    private var lastEndS = 0.0
    private var centreS = 0.0
    private val on = DoubleArray(classes) { rule.classes[it] ?: rule.on }
    private val off = DoubleArray(classes) { c -> rule.classes[c]?.let { it / 2 } ?: rule.off }
    private val above = BooleanArray(classes)
    private val reached = BooleanArray(classes)
    private val startS = DoubleArray(classes)
    private val peak = DoubleArray(classes)

    /** Mean of the last windows: what the bars show. (classes,) */
    val smoothed = FloatArray(classes)

    fun reset() {
        count = 0
        next = 0
        centreS = 0.0
        above.fill(false)
        reached.fill(false)
        startS.fill(0.0)
        peak.fill(0.0)
        smoothed.fill(0f)
    }

    /** Take the next window. Events that ended with it are added to [ended], by start. */
    fun push(tags: Tags, ended: MutableList<Event>) {
        // Skipped audio lies between: nobody knows whether the sound went on, so it ends.
        if (count > 0 && tags.startS > lastEndS) finish(ended)
        val first = count == 0
        System.arraycopy(tags.probs, 0, recent[next], 0, classes)
        centres[next] = (tags.startS + tags.endS) / 2
        lastEndS = tags.endS
        next = (next + 1) % rule.smooth
        count = minOf(count + 1, rule.smooth)
        val centre = mean { centres[it] }
        val borderS = if (first) tags.startS else (centreS + centre) / 2
        centreS = centre
        val from = ended.size
        for (c in 0 until classes) {
            val p = mean { recent[it][c].toDouble() }
            smoothed[c] = p.toFloat()
            val now = p >= off[c]
            if (above[c] && !now) close(c, borderS, ended)
            if (now && !above[c]) startS[c] = borderS
            above[c] = now
            if (p >= on[c]) reached[c] = true
            peak[c] = if (now) maxOf(peak[c], p) else 0.0
        }
        sortByStart(ended, from)
    }

    /** The stream is over: events that lasted until its end are added to [ended]. Then a new stream may begin. */
    fun finish(ended: MutableList<Event>) {
        val from = ended.size
        if (count > 0) for (c in 0 until classes) if (above[c]) close(c, lastEndS, ended)
        sortByStart(ended, from)
        reset()
    }

    /** Whether an event of class [c] is going on and has lasted long enough. */
    fun active(c: Int) = reached[c] && centreS - startS[c] >= rule.minDurationS

    /** When the event of class [c] that is going on began, in seconds. */
    fun startOf(c: Int) = startS[c]

    // The oldest window first: sums of floating-point numbers depend on their order.
    private inline fun mean(value: (Int) -> Double): Double {
        var sum = 0.0
        for (i in 0 until count) sum += value((next - count + i + rule.smooth) % rule.smooth)
        return sum / count
    }

    private fun close(c: Int, endS: Double, ended: MutableList<Event>) {
        val lasted = endS - startS[c] >= rule.minDurationS - 1e-9 // times are sums of hops
        if (reached[c] && lasted) ended += Event(c, startS[c], endS, peak[c])
        reached[c] = false
    }

    private fun sortByStart(ended: MutableList<Event>, from: Int) {
        if (ended.size - from > 1) ended.subList(from, ended.size).sortBy { it.startS }
    }
}
