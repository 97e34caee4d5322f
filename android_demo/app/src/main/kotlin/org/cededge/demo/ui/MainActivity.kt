package org.cededge.demo.ui

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.ActivityNotFoundException
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.os.Handler
import android.os.Looper
import android.provider.Settings.ACTION_APPLICATION_DETAILS_SETTINGS
import android.view.View
import android.view.WindowInsets
import android.widget.Button
import android.widget.Toast
import java.util.concurrent.atomic.AtomicBoolean
import org.cededge.demo.R
import org.cededge.demo.core.Demo
import org.cededge.demo.core.HasDemo
import org.cededge.demo.core.LiveState
import org.cededge.demo.core.Status

/** The one screen: four pages over one state. It draws; what it shows lives in the application. */
class MainActivity : Activity() {
    private val demo: Demo get() = (application as HasDemo).demo
    private val main = Handler(Looper.getMainLooper())
    private val pending = AtomicBoolean()
    private val state = LiveState()
    private var page = 0
    private var refused = false
    private lateinit var live: LivePage
    private lateinit var events: EventsPage
    private lateinit var model: ModelPage
    private lateinit var setup: SetupPage

    // However often something changes, at most one update waits for the screen.
    private val changed = Runnable { if (pending.compareAndSet(false, true)) main.postDelayed(update, FRAME_MS) }
    private val update = Runnable {
        pending.set(false)
        render()
    }

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        findViewById<View>(R.id.root).setOnApplyWindowInsetsListener { view, insets -> insets.also { pad(view, it) } }
        live = LivePage(this)
        events = EventsPage(this, demo)
        model = ModelPage(this, demo) { pick(PICK_BUNDLE) }
        setup = SetupPage(this, demo)
        findViewById<Button>(R.id.listen).setOnClickListener { if (state.listening) demo.stopListening() else listen() }
        findViewById<Button>(R.id.open_file).setOnClickListener { pick(PICK_FILE, "audio/*", "application/ogg") }
        findViewById<Button>(R.id.allow).setOnClickListener { openSettings() }
        for (i in TABS.indices) findViewById<Button>(TABS[i]).setOnClickListener { show(i) }
        refused = saved?.getBoolean("refused") ?: false
        show(saved?.getInt("page") ?: 0)
        // After a rotation the intent is still the old one: its file was opened already.
        if (saved == null) openFrom(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        setIntent(intent)
        openFrom(intent)
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        out.putInt("page", page)
        out.putBoolean("refused", refused)
    }

    override fun onStart() {
        super.onStart()
        demo.observe(changed)
        if (allowed()) refused = false // the user may come back from the settings
        setup.refresh()
        render()
    }

    override fun onStop() {
        demo.forget(changed)
        main.removeCallbacks(update)
        pending.set(false)
        super.onStop()
    }

    override fun onRequestPermissionsResult(code: Int, permissions: Array<String>, results: IntArray) {
        val i = permissions.indexOf(Manifest.permission.RECORD_AUDIO)
        if (i < 0) return // the request was broken off
        refused = results[i] != PackageManager.PERMISSION_GRANTED
        if (!refused) demo.requestListening()
        render()
    }

    @Deprecated("the framework's own way; its successor is part of AndroidX")
    override fun onActivityResult(code: Int, result: Int, data: Intent?) {
        val address = data?.data ?: return
        if (result != RESULT_OK) return
        if (code == PICK_FILE) demo.openFile(address.toString())
        if (code == PICK_BUNDLE) demo.openBundle(address.toString())
        if (code == PICK_FILE) show(0)
    }

    private fun allowed() = checkSelfPermission(Manifest.permission.RECORD_AUDIO) == PackageManager.PERMISSION_GRANTED

    private fun listen() {
        when {
            allowed() -> demo.requestListening()
            // The user refused once: the reason comes before the system's second question.
            shouldShowRequestPermissionRationale(Manifest.permission.RECORD_AUDIO) -> AlertDialog.Builder(this)
                .setMessage(R.string.why_microphone)
                .setPositiveButton(R.string.go_on) { _, _ -> requestMicrophone() }
                .setNegativeButton(R.string.cancel, null)
                .show()
            else -> requestMicrophone()
        }
    }

    private fun requestMicrophone() {
        val wanted = mutableListOf(Manifest.permission.RECORD_AUDIO)
        // The notification with the last event needs a permission of its own since Android 13; the app works without.
        if (Build.VERSION.SDK_INT >= 33) wanted += Manifest.permission.POST_NOTIFICATIONS
        requestPermissions(wanted.toTypedArray(), REQUEST_MICROPHONE)
    }

    private fun openSettings() {
        startActivity(Intent(ACTION_APPLICATION_DETAILS_SETTINGS, Uri.fromParts("package", packageName, null)))
    }

    private fun pick(code: Int, vararg types: String) {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
        if (types.isNotEmpty()) intent.putExtra(Intent.EXTRA_MIME_TYPES, types)
        try {
            @Suppress("DEPRECATION") startActivityForResult(intent, code)
        } catch (e: ActivityNotFoundException) {
            Toast.makeText(this, R.string.no_picker, Toast.LENGTH_LONG).show()
        }
    }

    private fun openFrom(intent: Intent) {
        @Suppress("DEPRECATION")
        val address = when (intent.action) {
            Intent.ACTION_VIEW -> intent.data
            Intent.ACTION_SEND -> intent.getParcelableExtra<Uri>(Intent.EXTRA_STREAM)
            else -> null
        } ?: return
        // Only what another app offers: a file:// address could name the app's own files.
        if (address.scheme == "content") demo.openFile(address.toString())
        show(0)
    }

    private fun show(index: Int) {
        page = index
        val pages = intArrayOf(R.id.live, R.id.events, R.id.model, R.id.setup)
        for (i in pages.indices) {
            findViewById<View>(pages[i]).visibility = if (i == index) View.VISIBLE else View.GONE
            findViewById<View>(TABS[i]).isSelected = i == index
        }
        render()
    }

    private fun render() {
        demo.fill(state)
        live.render(state, shownStatus())
        events.render(state)
        model.render()
        setup.render()
    }

    /** The permission may have changed since the last status: the user comes back from the settings. */
    private fun shownStatus() = when {
        refused && !state.listening -> Status.REFUSED
        state.status == Status.REFUSED && allowed() -> Status.IDLE
        else -> state.status
    }

    /** Android 15 draws behind the system's bars: keep the content out of them, and out of a camera's cutout. */
    private fun pad(view: View, insets: WindowInsets) {
        if (Build.VERSION.SDK_INT >= 30) {
            val i = insets.getInsets(WindowInsets.Type.systemBars() or WindowInsets.Type.displayCutout() or WindowInsets.Type.ime())
            view.setPadding(i.left, i.top, i.right, i.bottom)
        } else @Suppress("DEPRECATION") {
            view.setPadding(insets.systemWindowInsetLeft, insets.systemWindowInsetTop, insets.systemWindowInsetRight, insets.systemWindowInsetBottom)
        }
    }

    private companion object {
        const val REQUEST_MICROPHONE = 1
        const val PICK_FILE = 2
        const val PICK_BUNDLE = 3
        const val FRAME_MS = 50L
        val TABS = intArrayOf(R.id.tab_live, R.id.tab_events, R.id.tab_model, R.id.tab_setup)
    }
}
