package org.cededge.demo.ui

import android.app.Activity
import android.content.Context
import android.view.View
import android.widget.Button
import android.widget.TextView
import org.cededge.demo.R
import org.cededge.demo.core.LiveState
import org.cededge.demo.core.Status

/** Draws the Live page from a state. */
class LivePage(private val activity: Activity) {
    private val status = activity.findViewById<TextView>(R.id.status)
    private val bars = activity.findViewById<BarsView>(R.id.bars)
    private val level = activity.findViewById<LevelView>(R.id.level)
    private val levelText = activity.findViewById<TextView>(R.id.level_text)
    private val timeline = activity.findViewById<TimelineView>(R.id.timeline)
    private val numbers = activity.findViewById<TextView>(R.id.numbers)
    private val listen = activity.findViewById<Button>(R.id.listen)
    private val allow = activity.findViewById<View>(R.id.allow)

    fun render(state: LiveState, shown: Status) {
        set(status, sentence(activity, shown, state.detail))
        allow.visibility = if (shown == Status.REFUSED) View.VISIBLE else View.GONE
        set(listen, activity.getString(if (state.listening) R.string.stop else R.string.listen))
        set(levelText, if (state.seconds == 0.0) activity.getString(R.string.no_level) else activity.getString(R.string.level, Math.round(state.rmsDb).toInt(), Math.round(state.peakDb).toInt()))
        set(numbers, numbers(state))
        bars.show(state)
        level.show(state)
        timeline.show(state)
    }

    private fun numbers(s: LiveState): String {
        if (s.realTime == 0.0) return ""
        val text = activity.getString(R.string.numbers, Math.round(s.latencyMs).toInt(), s.realTime, s.dropped)
        return if (s.dropped == 0L) text else text + "\n" + activity.getString(R.string.too_slow)
    }

    /** TalkBack reads a live region again whenever its text is set, even to the same text. */
    private fun set(view: TextView, text: String) {
        if (view.text.toString() != text) view.text = text
    }
}

/** One plain sentence for each status. */
fun sentence(context: Context, status: Status, detail: String): String = when (status) {
    Status.LOADING -> context.getString(R.string.loading)
    Status.IDLE -> context.getString(R.string.idle)
    Status.STARTING -> context.getString(R.string.starting)
    Status.LISTENING -> context.getString(R.string.listening_now)
    Status.SILENCED -> context.getString(R.string.silenced)
    Status.ZEROS -> context.getString(R.string.zeros)
    Status.TAKEN -> context.getString(R.string.taken, detail)
    Status.UNPLUGGED -> context.getString(R.string.unplugged)
    Status.REFUSED -> context.getString(R.string.refused)
    Status.READING_FILE -> context.getString(R.string.reading_file, detail)
    Status.FILE_DONE -> context.getString(R.string.file_done, detail)
    Status.FAILED -> detail
}
