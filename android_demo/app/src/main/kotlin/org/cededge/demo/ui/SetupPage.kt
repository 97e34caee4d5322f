package org.cededge.demo.ui

import android.app.Activity
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.SeekBar
import android.widget.Spinner
import android.widget.Switch
import android.widget.TextView
import org.cededge.demo.R
import org.cededge.demo.core.Demo
import org.cededge.demo.core.Settings

/** Window, hop, threshold, smoothing, and which microphone; every change takes effect at once. */
class SetupPage(private val activity: Activity, private val demo: Demo) {
    private val keep = activity.findViewById<Switch>(R.id.keep_sound)
    private val source = activity.findViewById<Spinner>(R.id.source)
    private val device = activity.findViewById<Spinner>(R.id.device)
    private var sourceKeys = listOf("")
    private var deviceKeys = listOf("")
    private var shown: Settings? = null
    private var longestS = 0.0

    init {
        slider(R.id.window, 1, 1) { copy(windowS = it / 2.0, hopS = minOf(hopS, it / 2.0)) }
        slider(R.id.hop, 1, 20) { copy(hopS = minOf(it / 10.0, windowS)) }
        slider(R.id.threshold, OWN, 95) { copy(threshold = if (it == OWN) 0.0 else it / 100.0) }
        slider(R.id.smooth, 1, 9) { copy(smooth = it) }
        keep.setOnCheckedChangeListener { _, on -> if (demo.settings.keepSound != on) demo.change(demo.settings.copy(keepSound = on)) }
        choice(source) { if (demo.settings.source != sourceKeys[it]) demo.change(demo.settings.copy(source = sourceKeys[it])) }
        choice(device) { if (demo.settings.device != deviceKeys[it]) demo.change(demo.settings.copy(device = deviceKeys[it])) }
    }

    /** Read the microphones anew: one may have been plugged in. */
    fun refresh() {
        val automatic = activity.getString(R.string.automatic)
        sourceKeys = listOf("") + demo.sources.map { it.first }
        fill(source, listOf(automatic) + demo.sources.map { it.second })
        val devices = demo.devices
        val lost = demo.settings.device.takeIf { it.isNotEmpty() && devices.none { d -> d.first == it } }
        deviceKeys = listOf("") + devices.map { it.first } + listOfNotNull(lost)
        fill(device, listOf(automatic) + devices.map { it.second } + listOfNotNull(lost?.let { activity.getString(R.string.not_plugged, it.substringAfter(':')) }))
        shown = null
        render()
    }

    fun render() {
        val s = demo.settings
        val longest = demo.bundle?.windowS ?: s.windowS
        if (s == shown && longest == longestS) return
        shown = s
        longestS = longest
        // A model takes windows up to its own length; a longer one that was chosen before is cut to that.
        activity.findViewById<SeekBar>(R.id.window).max = maxOf(1, (2 * longest).toInt())
        val windowS = minOf(s.windowS, longest)
        val hopS = minOf(s.hopS, windowS)
        show(R.id.window, R.id.window_text, Math.round(2 * windowS).toInt(), activity.getString(R.string.window, windowS))
        show(R.id.hop, R.id.hop_text, Math.round(10 * hopS).toInt(), activity.getString(R.string.hop, hopS))
        val percent = Math.round(100 * s.threshold).toInt()
        if (percent == 0) show(R.id.threshold, R.id.threshold_text, OWN, activity.getString(R.string.threshold_own))
        else show(R.id.threshold, R.id.threshold_text, percent, activity.getString(R.string.threshold, percent))
        show(R.id.smooth, R.id.smooth_text, s.smooth, activity.resources.getQuantityString(R.plurals.smooth, s.smooth, s.smooth))
        keep.isChecked = s.keepSound
        source.setSelection(maxOf(0, sourceKeys.indexOf(s.source)))
        device.setSelection(maxOf(0, deviceKeys.indexOf(s.device)))
    }

    private fun show(bar: Int, text: Int, value: Int, words: String) {
        activity.findViewById<SeekBar>(bar).apply {
            if (progress != value) progress = value
            contentDescription = words
        }
        activity.findViewById<TextView>(text).text = words
    }

    private fun slider(id: Int, low: Int, high: Int, change: Settings.(Int) -> Settings) {
        activity.findViewById<SeekBar>(id).apply {
            min = low
            max = high
            setOnSeekBarChangeListener(object : SeekBar.OnSeekBarChangeListener {
                override fun onProgressChanged(bar: SeekBar, value: Int, byUser: Boolean) {
                    if (byUser) demo.change(demo.settings.change(value))
                }

                override fun onStartTrackingTouch(bar: SeekBar) = Unit

                override fun onStopTrackingTouch(bar: SeekBar) = Unit
            })
        }
    }

    private fun choice(spinner: Spinner, chosen: (Int) -> Unit) {
        spinner.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>, view: View?, i: Int, id: Long) = chosen(i)

            override fun onNothingSelected(parent: AdapterView<*>) = Unit
        }
    }

    private fun fill(spinner: Spinner, names: List<String>) {
        spinner.adapter = ArrayAdapter(activity, android.R.layout.simple_spinner_dropdown_item, names)
    }

    private companion object {
        const val OWN = 4 // left of 5 %: the model's own thresholds
    }
}
