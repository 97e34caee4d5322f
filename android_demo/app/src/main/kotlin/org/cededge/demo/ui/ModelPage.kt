package org.cededge.demo.ui

import android.app.Activity
import android.view.View
import android.widget.Button
import android.widget.TextView
import org.cededge.demo.R
import org.cededge.demo.core.Demo

/** What runs here: model, hash, runtime, classes, where the labels are from. */
class ModelPage(private val activity: Activity, private val demo: Demo, pick: () -> Unit) {
    private val card = activity.findViewById<TextView>(R.id.card)
    private var shown = ""

    init {
        activity.findViewById<Button>(R.id.load_bundle).setOnClickListener { pick() }
        activity.findViewById<Button>(R.id.built_in).setOnClickListener { demo.useBuiltIn() }
    }

    fun render() {
        val b = demo.bundle
        val text = if (b == null) activity.getString(R.string.no_model) else activity.getString(
            R.string.card, b.modelFile, b.modelBytes / 1e6, b.quantisation, b.modelSha256.take(16), b.sha256.take(16),
            demo.runtime, b.labels.size, b.windowS, b.rateHz / 1000, activity.packageManager.getPackageInfo(activity.packageName, 0).versionName,
        )
        if (text == shown) return
        shown = text
        card.text = text
    }
}
