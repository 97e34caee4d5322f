package org.cededge.demo.ui

import android.app.Activity
import android.content.ClipData
import android.content.Intent
import android.net.Uri
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.Button
import android.widget.ListView
import android.widget.TextView
import android.widget.Toast
import java.text.DateFormat
import java.util.Date
import org.cededge.demo.R
import org.cededge.demo.core.Demo
import org.cededge.demo.core.Entry
import org.cededge.demo.core.LiveState

/** The list of events, the newest first; shared as CSV, and each one's sound where it was kept. */
class EventsPage(private val activity: Activity, private val demo: Demo) {
    private var shown = -1
    private var rows: List<Entry> = emptyList()
    private val empty = activity.findViewById<View>(R.id.no_events)
    private val share = activity.findViewById<Button>(R.id.share)
    private val clear = activity.findViewById<Button>(R.id.clear)
    private val time = DateFormat.getTimeInstance(DateFormat.MEDIUM)
    private val adapter = object : BaseAdapter() {
        override fun getCount() = rows.size

        override fun getItem(i: Int) = rows[i]

        override fun getItemId(i: Int) = i.toLong()

        override fun getView(i: Int, old: View?, parent: ViewGroup): View {
            val view = old ?: activity.layoutInflater.inflate(R.layout.event, parent, false)
            val e = rows[i]
            view.findViewById<TextView>(R.id.event_label).text = e.label
            view.findViewById<TextView>(R.id.event_detail).text = activity.getString(
                if (e.sound == null) R.string.event_detail else R.string.event_detail_sound,
                time.format(Date(e.atMs)), e.event.endS - e.event.startS, Math.round(100 * e.event.peak).toInt(),
            )
            return view
        }
    }

    init {
        val list = activity.findViewById<ListView>(R.id.event_list)
        list.adapter = adapter
        list.setOnItemClickListener { _, _, i, _ -> if (rows[i].sound != null) send(demo.soundAddress(rows[i]), "audio/wav") }
        share.setOnClickListener { send(demo.csvAddress(), "text/csv") }
        clear.setOnClickListener { demo.clearEntries() }
    }

    fun render(state: LiveState) {
        if (state.listVersion == shown) return
        shown = state.listVersion
        rows = demo.entries.reversed()
        empty.visibility = if (rows.isEmpty()) View.VISIBLE else View.GONE
        share.isEnabled = rows.isNotEmpty()
        clear.isEnabled = rows.isNotEmpty()
        adapter.notifyDataSetChanged()
    }

    private fun send(file: String?, type: String) {
        if (file == null) return Toast.makeText(activity, R.string.not_shared, Toast.LENGTH_LONG).show()
        val address = Uri.parse(file)
        val intent = Intent(Intent.ACTION_SEND).setType(type).putExtra(Intent.EXTRA_STREAM, address)
            .addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
        intent.clipData = ClipData.newRawUri(address.lastPathSegment, address) // the read permission travels with it
        activity.startActivity(Intent.createChooser(intent, null))
    }
}
