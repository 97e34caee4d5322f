package org.cededge.demo

import android.content.Context
import android.database.Cursor
import android.net.Uri
import android.provider.OpenableColumns
import java.io.File
import java.io.IOException
import java.util.concurrent.CopyOnWriteArraySet
import java.util.concurrent.Executors
import org.cededge.demo.audio.Microphone
import org.cededge.demo.audio.SoundFile
import org.cededge.demo.core.Bundle
import org.cededge.demo.core.BundleFiles
import org.cededge.demo.core.BundleReader
import org.cededge.demo.core.Demo
import org.cededge.demo.core.Engine
import org.cededge.demo.core.Entry
import org.cededge.demo.core.Event
import org.cededge.demo.core.InputError
import org.cededge.demo.core.Listener
import org.cededge.demo.core.LiveState
import org.cededge.demo.core.Settings
import org.cededge.demo.core.Status
import org.cededge.demo.core.csv
import org.cededge.demo.core.writeWav
import org.cededge.demo.engine.OrtEngine
import org.cededge.demo.service.ListenService
import org.cededge.demo.service.ShareProvider

/**
 * Joins the parts: bundle -> engine -> listener <- microphone or file. What takes time runs on one thread, `work`, one
 * thing after the other; so a file and the microphone never use the engine at once.
 */
class Center(private val context: Context) : Demo {
    private val store = Store(context)
    private val work = Executors.newSingleThreadExecutor { Thread(it, "work") }
    private val observers = CopyOnWriteArraySet<Runnable>()
    private val onChange = Runnable { for (o in observers) o.run() }
    private val list = ArrayList<Entry>()
    private var engine: Engine? = null
    private var microphone: Microphone? = null

    @Volatile private var listener: Listener? = null
    @Volatile private var wanted = false // the user wants to listen
    @Volatile private var newestFile = 0 // a file is tagged until the user chooses something else
    @Volatile private var status = Status.LOADING
    @Volatile private var detail = ""
    @Volatile private var changes = 0
    @Volatile override var settings = store.settings()
        private set
    @Volatile override var bundle: Bundle? = null
        private set
    @Volatile override var runtime = ""
        private set

    override val entries: List<Entry> get() = synchronized(list) { ArrayList(list) }
    override val sources get() = Microphone.sources(context).map { it to it }
    override val devices get() = Microphone.devices(context).map { it.first to it.second.productName.toString() }

    init {
        work.execute {
            // The list of these sounds is gone. Another app may still read what was shared lately.
            val old = System.currentTimeMillis() - A_DAY_MS
            for (file in ShareProvider.folder(context).listFiles().orEmpty()) if (file.lastModified() < old) file.delete()
            load("")
        }
    }

    /** Run [block] after all work that was started before; tests wait with it. */
    fun afterWork(block: () -> Unit) = work.execute(block)

    override fun change(settings: Settings) {
        val before = this.settings
        this.settings = settings
        store.save(settings)
        try {
            listener?.change(settings)
        } catch (e: InputError) {
            show(Status.FAILED, e.message ?: "")
        }
        if (settings.source != before.source || settings.device != before.device) work.execute {
            if (microphone != null) {
                microphone?.close()
                openMicrophone()
            }
        }
        onChange.run()
    }

    override fun requestListening() = ListenService.start(context)

    override fun refuse() {
        stopListening()
        show(Status.REFUSED)
    }

    override fun startListening() {
        if (wanted) return
        wanted = true
        newestFile++
        show(Status.STARTING)
        work.execute { begin() }
    }

    override fun stopListening() {
        if (!wanted) return
        wanted = false
        show(Status.IDLE)
        work.execute { end() }
    }

    override fun openFile(address: String) {
        stopListening()
        val file = ++newestFile
        val name = name(Uri.parse(address))
        show(Status.READING_FILE, name)
        work.execute { tagFile(Uri.parse(address), name) { file != newestFile } }
    }

    override fun openBundle(address: String) {
        stopListening()
        newestFile++
        show(Status.LOADING)
        work.execute {
            try {
                val stream = context.contentResolver.openInputStream(Uri.parse(address)) ?: throw IOException()
                store.replaceBundle(stream)
                load("")
            } catch (e: InputError) {
                load(e.message ?: "")
            } catch (e: IOException) {
                load(context.getString(R.string.bundle_unreadable))
            } catch (e: RuntimeException) { // other apps' providers throw what they like
                load(context.getString(R.string.bundle_unreadable))
            }
        }
    }

    override fun useBuiltIn() {
        stopListening()
        newestFile++
        show(Status.LOADING)
        work.execute {
            store.removeBundle()
            load("")
        }
    }

    override fun clearEntries() {
        synchronized(list) {
            for (entry in list) forgetSound(entry)
            list.clear()
        }
        changes++
        onChange.run()
    }

    override fun csvAddress(): String? = try {
        File(ShareProvider.folder(context), CSV).writeText(csv(entries))
        ShareProvider.address(context, CSV)
    } catch (e: IOException) {
        null
    }

    override fun soundAddress(entry: Entry): String? =
        entry.sound?.takeIf { File(ShareProvider.folder(context), it).isFile }?.let { ShareProvider.address(context, it) }

    private fun forgetSound(entry: Entry) {
        entry.sound?.let { File(ShareProvider.folder(context), it).delete() }
    }

    override fun fill(state: LiveState) {
        val l = listener
        val error = l?.error() ?: ""
        if (error.isNotEmpty() && wanted) {
            stopListening()
            show(Status.FAILED, error)
        }
        l?.fill(state) ?: run { state.tags = 0 }
        state.status = if (status == Status.LISTENING && l != null && l.zeroSeconds() > ZEROS_S) Status.ZEROS else status
        state.detail = detail
        state.listVersion = changes
    }

    override fun observe(changed: Runnable) {
        observers += changed
    }

    override fun forget(changed: Runnable) {
        observers -= changed
    }

    private fun show(status: Status, detail: String = "") {
        this.detail = detail
        this.status = status
        onChange.run()
    }

    /** Load the bundle that the user chose, or the app's own where there is none or it is refused. */
    private fun load(problem: String) {
        var refused = problem
        end()
        engine?.close()
        engine = null
        bundle = null
        val chosen = store.bundleFolder()
        if (chosen != null) {
            try {
                use(chosen)
            } catch (e: InputError) {
                refused = e.message ?: ""
                store.removeBundle()
            }
        }
        try {
            if (bundle == null) use(store.builtIn())
            if (refused.isNotEmpty()) show(Status.FAILED, refused) else if (!wanted) show(Status.IDLE)
        } catch (e: InputError) {
            show(Status.FAILED, e.message ?: "")
        }
    }

    private fun use(files: BundleFiles) {
        val read = BundleReader.read(files)
        val model = try {
            files.map(read.modelFile)
        } catch (e: IOException) {
            throw InputError("${read.modelFile} does not fit into this phone's memory: choose a smaller model.")
        }
        val loaded = OrtEngine(model, read)
        engine = loaded
        runtime = loaded.runtime
        bundle = read
    }

    /** [beganMs]: when the sound began, for a file; null where it comes now. */
    private fun newListener(bundle: Bundle, source: Engine, beganMs: Long?) =
        Listener(source, bundle, settings, onChange, { event, sound, ageS ->
            // Counted back from now: the microphone's clock drifts, and a lost microphone leaves gaps.
            val atMs = if (beganMs == null) System.currentTimeMillis() - (1000 * ageS).toLong() else beganMs + (1000 * event.startS).toLong()
            add(bundle, event, sound, atMs)
        })

    private fun begin() {
        val b = bundle
        val e = engine
        if (!wanted || b == null || e == null) return
        listener = newListener(b, e, null).also { it.start() }
        openMicrophone()
    }

    private fun openMicrophone() {
        val b = bundle ?: return
        microphone = Microphone(
            context, b.rateHz, settings.source, settings.device,
            { samples, n -> listener?.accept(samples, n) },
            { s, retryS ->
                if (s == Status.TAKEN) listener?.gap()
                if (wanted) {
                    if (s == Status.REFUSED) refuse() else show(s, if (retryS > 0) retryS.toString() else "")
                }
            },
        )
    }

    /** The microphone first: what it gave before is still predicted. The listener stays, for the screen. */
    private fun end() {
        microphone?.close()
        microphone = null
        listener?.close()
    }

    private fun tagFile(address: Uri, name: String, stopped: () -> Boolean) {
        val b = bundle
        val e = engine
        if (stopped() || b == null || e == null) return
        val l = newListener(b, e, System.currentTimeMillis())
        listener = l
        try {
            SoundFile(context, address, b.rateHz).decode(stopped) { samples, n ->
                l.accept(samples, n)
                l.predictAll()
            }
            l.finishFile()
            if (!stopped()) show(Status.FILE_DONE, name)
        } catch (x: InputError) {
            if (!stopped()) show(Status.FAILED, x.message ?: "")
        } catch (x: SecurityException) {
            if (!stopped()) show(Status.FAILED, context.getString(R.string.file_unreadable))
        }
    }

    private fun add(bundle: Bundle, event: Event, sound: FloatArray?, atMs: Long) {
        val file = sound?.let { samples ->
            val name = "event-$atMs-${event.index}.wav"
            try {
                File(ShareProvider.folder(context), name).outputStream().use { writeWav(samples, bundle.rateHz, it) }
                name
            } catch (e: IOException) {
                null // the phone is full: the event itself still counts
            }
        }
        synchronized(list) {
            if (list.size == MAX_ENTRIES) forgetSound(list.removeAt(0))
            list += Entry(event, bundle.labels[event.index], atMs, file)
        }
        changes++
    }

    private fun name(address: Uri): String {
        val cursor: Cursor? = try {
            context.contentResolver.query(address, arrayOf(OpenableColumns.DISPLAY_NAME), null, null, null)
        } catch (e: RuntimeException) { // other apps' providers throw what they like
            null
        }
        return cursor?.use { if (it.moveToFirst()) it.getString(0) else null } ?: address.lastPathSegment ?: "?"
    }

    private companion object {
        const val ZEROS_S = 1.0
        const val MAX_ENTRIES = 1000
        const val CSV = "events.csv"
        const val A_DAY_MS = 24 * 3600 * 1000L
    }
}
