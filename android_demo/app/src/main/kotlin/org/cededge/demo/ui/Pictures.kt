package org.cededge.demo.ui

import android.content.Context
import android.graphics.Canvas
import android.util.AttributeSet
import android.view.View
import org.cededge.demo.R
import org.cededge.demo.core.LiveState

/** A view that draws a [LiveState] by one of the functions in Draw.kt. It holds no state of its own. */
abstract class Picture(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    protected val look = Look(context)
    protected var state: LiveState? = null

    fun show(state: LiveState) {
        this.state = state
        val text = describe(state)
        if (text != contentDescription) contentDescription = text
        invalidate()
    }

    protected abstract fun describe(state: LiveState): String

    protected abstract fun heightPx(): Float

    override fun onMeasure(width: Int, height: Int) {
        val wanted = Math.ceil(heightPx().toDouble()).toInt() + paddingTop + paddingBottom
        setMeasuredDimension(getDefaultSize(suggestedMinimumWidth, width), resolveSize(wanted, height))
    }
}

class BarsView(context: Context, attributes: AttributeSet?) : Picture(context, attributes) {
    override fun heightPx() = barsHeight(look)

    override fun describe(state: LiveState): String {
        if (state.tags == 0) return context.getString(R.string.no_tags)
        return (0 until state.tags).joinToString { context.getString(R.string.tag_percent, state.names[it], Math.round(100 * state.probs[it])) }
    }

    override fun onDraw(canvas: Canvas) {
        drawBars(canvas, state ?: return, look, width.toFloat(), context.getString(R.string.no_tags))
    }
}

class LevelView(context: Context, attributes: AttributeSet?) : Picture(context, attributes) {
    override fun heightPx() = 8 * look.dp

    override fun describe(state: LiveState): String = context.getString(R.string.level, state.rmsDb.toInt(), state.peakDb.toInt())

    override fun onDraw(canvas: Canvas) {
        drawLevel(canvas, state ?: return, look, width.toFloat(), height.toFloat())
    }
}

class TimelineView(context: Context, attributes: AttributeSet?) : Picture(context, attributes) {
    private val strip = Strip()

    override fun heightPx() = timelineHeight(look)

    override fun describe(state: LiveState): String {
        val names = (0 until state.spans).mapNotNull { state.spanName[it] }.distinct()
        return context.getString(R.string.timeline, if (names.isEmpty()) context.getString(R.string.none) else names.joinToString())
    }

    override fun onDraw(canvas: Canvas) {
        val s = state ?: return
        strip.update(s, look)
        drawTimeline(canvas, s, strip, look, width.toFloat())
    }
}
