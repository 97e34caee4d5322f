package org.cededge.demo.core

import java.util.function.LongSupplier

/**
 * From samples to tags, events and pictures. Samples come on one thread ([accept]), predictions run on another
 * ([start]), and the screen reads from a third ([fill]). Between them stands one lock, never held while predicting.
 */
class Listener(
    private val engine: Engine,
    private val bundle: Bundle,
    settings: Settings,
    private val onChange: Runnable,
    /** `ageS`: seconds of sound from the event's begin to the newest sample. */
    private val onEvent: (Event, sound: FloatArray?, ageS: Double) -> Unit,
    private val clock: LongSupplier = LongSupplier(System::nanoTime), // a Kotlin lambda would box every Long
) : AutoCloseable {
    private val lock = Object()
    private val stream = Stream(engine, bundle)
    private val level = Level()
    private val timeline = Timeline(bundle.rateHz)
    private val tags = Tags(bundle.labels.size)
    private val top = TopK(LiveState.TOP)
    private val ended = ArrayList<Event>()
    private val spans = ArrayDeque<Event>()
    private var events = Events(EventRule(), bundle.labels.size)
    private var keepSound = false
    private var latencyMs = 0.0
    private var realTime = 0.0
    private var dropped = 0L
    private var arrivedNs = 0L
    private var predicting = false
    private var gapBehind = false // sound was lost after the window that is being predicted
    private var worker: Thread? = null
    private var error = ""

    init {
        change(settings)
    }

    /** Window, hop, threshold and smoothing change at once; the loaded model stays. Raises InputError. */
    fun change(settings: Settings) {
        synchronized(lock) {
            val window = Math.round(settings.windowS * bundle.rateHz).toInt().coerceIn(bundle.minSamples, bundle.windowSamples)
            val hop = minOf(window, Math.round(settings.hopS * bundle.rateHz).toInt())
            if (window != stream.window || hop != stream.hop) stream.configure(window, hop)
            val rule = if (settings.threshold > 0) EventRule(settings.threshold, settings.threshold / 2, smooth = settings.smooth)
            else EventRule(smooth = settings.smooth, classes = bundle.thresholds)
            if (rule != events.rule) {
                events.finish(ended)
                events = Events(rule, bundle.labels.size)
            }
            keepSound = settings.keepSound
        }
        report()
    }

    /** Take the next samples at the bundle's rate. Never waits for a prediction. */
    fun accept(samples: FloatArray, count: Int) {
        synchronized(lock) {
            level.add(samples, count)
            timeline.add(samples, count)
            stream.accept(samples, count)
            arrivedNs = clock.asLong
            lock.notifyAll()
        }
        onChange.run()
    }

    /** Sound is lost here: events end, and no window reaches across. */
    fun gap() {
        synchronized(lock) {
            stream.restart()
            if (predicting) gapBehind = true else events.finish(ended)
        }
        report()
    }

    /** Predict on a thread of its own, as the samples come. Windows that come too fast are dropped and counted. */
    fun start() {
        check(worker == null)
        val thread = Thread({
            try {
                while (await()) predictNext()
                finishEvents()
            } catch (e: InputError) {
                synchronized(lock) { error = e.message ?: "" }
                onChange.run()
            } catch (e: InterruptedException) {
                finishEvents()
            }
        }, "predict")
        worker = thread // before it runs: it stops where there is no worker any more
        thread.start()
    }

    /** Predict everything that is ready on this thread: for files, where nothing may be dropped. */
    fun predictAll() {
        while (synchronized(lock) { stream.ready() > 0 }) predictNext()
    }

    /** The sound is over: its last window, and the events that were going on. */
    fun finishFile() {
        synchronized(lock) { stream.finish() }
        predictAll()
        finishEvents()
    }

    /** The sentence that ended the predictions, or an empty one. */
    fun error() = synchronized(lock) { error }

    /** Seconds in which every sample was zero, up to now. */
    fun zeroSeconds() = synchronized(lock) { level.zeros.toDouble() / bundle.rateHz }

    fun fill(state: LiveState) {
        synchronized(lock) {
            top.find(events.smoothed)
            state.tags = 0
            for (i in 0 until top.count) {
                if (top.values[i] < SHOWN) break
                state.names[i] = bundle.labels[top.indices[i]]
                state.probs[i] = top.values[i]
                state.tags++
            }
            state.rmsDb = level.rmsDb
            state.peakDb = level.peakDb
            state.latencyMs = latencyMs
            state.realTime = realTime
            state.dropped = dropped
            state.seconds = stream.samples.toDouble() / bundle.rateHz
            System.arraycopy(timeline.pixels, 0, state.pixels, 0, state.pixels.size)
            state.columns = timeline.columns
            fillSpans(state)
        }
    }

    private fun fillSpans(state: LiveState) {
        state.spans = 0
        for (i in 0 until bundle.labels.size) if (events.active(i)) span(state, i, events.startOf(i), state.seconds)
        for (i in spans.size - 1 downTo 0) span(state, spans[i].index, spans[i].startS, spans[i].endS)
    }

    private fun span(state: LiveState, index: Int, startS: Double, endS: Double) {
        if (state.spans == LiveState.SPANS || endS < state.seconds - Timeline.SECONDS) return
        val i = state.spans++
        state.spanClass[i] = index
        state.spanName[i] = bundle.labels[index]
        state.spanStart[i] = startS
        state.spanEnd[i] = endS
    }

    private fun await(): Boolean {
        synchronized(lock) {
            while (worker != null && stream.ready() == 0L) lock.wait()
            if (worker == null) return false
            dropped += stream.skip(maxOf(1L, Math.round(MAX_LAG_S * bundle.rateHz / stream.hop)))
            return true
        }
    }

    private fun predictNext() {
        var hop = 0
        var arrived = 0L
        val count = synchronized(lock) {
            hop = stream.hop
            arrived = arrivedNs
            predicting = true
            stream.take(tags)
        }
        val before = clock.asLong
        stream.predict(count, tags)
        val after = clock.asLong
        synchronized(lock) {
            latencyMs = (after - arrived) / 1e6
            realTime = (after - before) / 1e9 * bundle.rateHz / hop
            events.push(tags, ended)
            if (gapBehind) events.finish(ended)
            predicting = false
            gapBehind = false
        }
        report()
    }

    private fun finishEvents() {
        synchronized(lock) { events.finish(ended) }
        report()
    }

    /** Hand on the events that have ended, outside the lock. */
    private fun report() {
        while (true) {
            var sound: FloatArray? = null
            var ageS = 0.0
            val event = synchronized(lock) {
                if (ended.isEmpty()) null else ended.removeAt(0).also {
                    // A long event keeps its end: the ring may have lost its beginning.
                    if (keepSound) sound = stream.sound(maxOf(it.startS, it.endS - MAX_SOUND_S) - 0.5, it.endS + 0.5)
                    ageS = stream.samples.toDouble() / bundle.rateHz - it.startS
                    spans.addLast(it)
                    if (spans.size > LiveState.SPANS) spans.removeFirst()
                }
            } ?: break
            onEvent(event, sound, ageS)
        }
        onChange.run()
    }

    /** Stop predicting; the events that were going on end now. Does not close the engine. */
    override fun close() {
        val thread = worker ?: return
        synchronized(lock) {
            worker = null
            lock.notifyAll()
        }
        thread.join()
    }

    private companion object {
        const val MAX_LAG_S = 0.5 // as `ced-edge listen`
        const val SHOWN = 0.05f
        const val MAX_SOUND_S = 10.0
    }
}
