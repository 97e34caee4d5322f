package org.cededge.demo.ui

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Rect
import android.graphics.RectF
import android.text.TextPaint
import android.text.TextUtils
import java.util.Locale
import org.cededge.demo.R
import org.cededge.demo.core.Level
import org.cededge.demo.core.LiveState
import org.cededge.demo.core.Mel
import org.cededge.demo.core.Timeline

/** Colours, text sizes and brushes of the pictures, made once per view. */
class Look(context: Context) {
    val dp = context.resources.displayMetrics.density
    val locale: Locale = context.resources.configuration.locales[0]
    val rtl = context.resources.configuration.layoutDirection == 1
    private val textPx = context.resources.getDimension(R.dimen.picture_text) // in sp: follows the font scale
    val ink = TextPaint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.ink); textSize = textPx }
    val faint = TextPaint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.ink_soft); textSize = textPx * 0.8f }
    val bar = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.accent) }
    val track = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.track) }
    val loud = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.warning) }
    val spans = context.resources.getIntArray(R.array.span_colours).map { c -> Paint(Paint.ANTI_ALIAS_FLAG).apply { color = c } }
    val lineHeight get() = ink.fontSpacing
    val faintHeight get() = faint.fontSpacing

    /** From the darkest to the brightest colour of the spectrogram. */
    val heat = IntArray(256) { i ->
        val t = i / 255f
        fun mix(a: Int, b: Int, c: Int) = (if (t < 0.5f) a + (b - a) * 2 * t else b + (c - b) * (2 * t - 1)).toInt()
        (0xff shl 24) or (mix(12, 140, 255) shl 16) or (mix(10, 40, 236) shl 8) or mix(40, 129, 150)
    }
    val box = RectF()
    val from = Rect()
    val to = Rect()
    val lanes = IntArray(LANES)

    companion object {
        const val LANES = 5
    }
}

/** Height of the bars for [LiveState.TOP] tags. */
fun barsHeight(look: Look) = LiveState.TOP * rowHeight(look)

private fun rowHeight(look: Look) = look.lineHeight + 18 * look.dp

/** Each tag: its name, its percentage, and a bar below them. */
fun drawBars(canvas: Canvas, state: LiveState, look: Look, width: Float, nothing: String) {
    if (state.tags == 0) drawAtStart(canvas, nothing, 0f, -look.ink.ascent(), look.faint, look.rtl, width)
    for (i in 0 until state.tags) {
        val y = i * rowHeight(look)
        val base = y - look.ink.ascent()
        val percent = String.format(look.locale, "%d %%", Math.round(100 * state.probs[i]))
        val room = width - look.ink.measureText(percent) - 8 * look.dp
        val name = TextUtils.ellipsize(state.names[i], look.ink, room, TextUtils.TruncateAt.END).toString()
        drawAtStart(canvas, name, 0f, base, look.ink, look.rtl, width)
        drawAtStart(canvas, percent, width - look.ink.measureText(percent), base, look.ink, look.rtl, width)
        val top = y + look.lineHeight + 2 * look.dp
        val r = 4 * look.dp
        canvas.drawRoundRect(0f, top, width, top + 8 * look.dp, r, r, look.track)
        val length = maxOf(2 * r, width * state.probs[i])
        if (look.rtl) canvas.drawRoundRect(width - length, top, width, top + 8 * look.dp, r, r, look.bar)
        else canvas.drawRoundRect(0f, top, length, top + 8 * look.dp, r, r, look.bar)
    }
}

/** Text that begins [x] after the start edge: the left one, or the right one where the language runs that way. */
private fun drawAtStart(canvas: Canvas, text: String, x: Float, base: Float, paint: Paint, rtl: Boolean, width: Float) {
    canvas.drawText(text, if (rtl) width - x - paint.measureText(text) else x, base, paint)
}

/** Loudness from -80 to 0 dBFS, with a mark at the peak; red where the microphone overdrives. */
fun drawLevel(canvas: Canvas, state: LiveState, look: Look, width: Float, height: Float) {
    fun x(db: Double) = (width * (db + 80) / 80).toFloat().coerceIn(0f, width)
    val r = height / 2
    canvas.drawRoundRect(0f, 0f, width, height, r, r, look.track)
    val paint = if (state.peakDb > -1) look.loud else look.bar
    val rms = x(state.rmsDb)
    val peak = x(state.peakDb)
    if (look.rtl) canvas.drawRoundRect(width - rms, 0f, width, height, r, r, paint) else canvas.drawRoundRect(0f, 0f, rms, height, r, r, paint)
    if (state.peakDb > Level.FLOOR_DB) {
        val at = if (look.rtl) width - peak else peak
        canvas.drawRect(at - look.dp, 0f, at + look.dp, height, paint)
    }
}

/** The spectrogram as a picture whose columns are written round and round; only new columns are written. */
class Strip {
    val bitmap: Bitmap = Bitmap.createBitmap(Timeline.COLUMNS, Mel.BANDS, Bitmap.Config.ARGB_8888)
    private val column = IntArray(Mel.BANDS)
    private var written = 0L

    fun update(state: LiveState, look: Look) {
        if (state.columns < written) {
            written = 0
            bitmap.eraseColor(0)
        }
        for (c in maxOf(written, state.columns - Timeline.COLUMNS) until state.columns) {
            val x = (c % Timeline.COLUMNS).toInt()
            for (m in 0 until Mel.BANDS) column[Mel.BANDS - 1 - m] = look.heat[state.pixels[x * Mel.BANDS + m].toInt() and 255]
            bitmap.setPixels(column, 0, 1, x, 0, 1, Mel.BANDS)
        }
        written = state.columns
    }
}

fun timelineHeight(look: Look) = 96 * look.dp + look.faintHeight + Look.LANES * laneHeight(look)

private fun laneHeight(look: Look) = look.faintHeight + 12 * look.dp

/**
 * The last 30 s: spectrogram, a scale, and below it a lane per class of event. Time runs from left to right in every
 * language, as on a player.
 */
fun drawTimeline(canvas: Canvas, state: LiveState, strip: Strip, look: Look, width: Float) {
    val height = 96 * look.dp
    look.box.set(0f, 0f, width, height)
    canvas.drawRect(look.box, look.track)
    val n = Timeline.COLUMNS
    val shown = minOf(state.columns, n.toLong()).toInt()
    val split = (state.columns % n).toInt() // the oldest column, once the picture is full
    if (shown == n) {
        part(canvas, strip, look, split, n, 0f, width * (n - split) / n, height)
        part(canvas, strip, look, 0, split, width * (n - split) / n, width, height)
    } else part(canvas, strip, look, 0, shown, width * (n - shown) / n, width, height)
    val base = height - look.faint.ascent()
    for (s in 30 downTo 0 step 10) {
        val text = String.format(look.locale, if (s == 0) "%d s" else "\u2212%d s", s)
        val x = width * (30 - s) / 30
        canvas.drawText(text, (x - look.faint.measureText(text) / 2).coerceIn(0f, width - look.faint.measureText(text)), base, look.faint)
    }
    drawSpans(canvas, state, look, width, height + look.faintHeight)
}

private fun part(canvas: Canvas, strip: Strip, look: Look, a: Int, b: Int, left: Float, right: Float, height: Float) {
    if (b <= a) return
    look.from.set(a, 0, b, Mel.BANDS)
    look.to.set(left.toInt(), 0, right.toInt(), height.toInt())
    canvas.drawBitmap(strip.bitmap, look.from, look.to, null)
}

private fun drawSpans(canvas: Canvas, state: LiveState, look: Look, width: Float, top: Float) {
    var lanes = 0
    for (i in 0 until state.spans) {
        var lane = -1
        for (k in 0 until lanes) if (look.lanes[k] == state.spanClass[i]) lane = k
        val first = lane < 0
        if (first) {
            if (lanes == Look.LANES) continue
            lane = lanes++
            look.lanes[lane] = state.spanClass[i]
        }
        val y = top + lane * laneHeight(look)
        fun x(s: Double) = (width * (1 - (state.seconds - s) / Timeline.SECONDS)).toFloat().coerceIn(0f, width)
        val from = x(state.spanStart[i])
        val to = maxOf(from + 3 * look.dp, x(state.spanEnd[i]))
        val paint = look.spans[state.spanClass[i] % look.spans.size]
        if (first) {
            val name = TextUtils.ellipsize(state.spanName[i], look.faint, width, TextUtils.TruncateAt.END).toString()
            drawAtStart(canvas, name, 0f, y - look.faint.ascent(), look.faint, look.rtl, width)
        }
        val bar = y + look.faintHeight
        canvas.drawRoundRect(from, bar, to, bar + 8 * look.dp, 3 * look.dp, 3 * look.dp, paint)
    }
}
