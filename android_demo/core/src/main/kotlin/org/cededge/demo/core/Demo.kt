package org.cededge.demo.core

/** What the app is doing, or why it is not: each one has a plain sentence on the screen. */
enum class Status {
    LOADING, IDLE, STARTING, LISTENING,
    /** The system gives zeros: another app, or the microphone switch of Android 12, silences us. */
    SILENCED,
    /** Nothing but zeros, and the system names no reason. */
    ZEROS,
    /** Another app holds the microphone, or it failed: the app tries again. */
    TAKEN,
    /** The chosen device is gone; the app goes on with the phone's own microphone. */
    UNPLUGGED,
    /** The permission is missing. */
    REFUSED,
    READING_FILE, FILE_DONE,
    /** [LiveState.detail] holds the sentence. */
    FAILED,
}

/** What the user can choose. Immutable: a change makes a new one. */
data class Settings(
    val windowS: Double = 2.0,
    val hopS: Double = 0.5,
    /** Probability from which on an event begins. 0: the model's own one for each class, else 0.4, as `ced-edge listen`. */
    val threshold: Double = 0.0,
    val smooth: Int = 3,
    /** Save a short WAV of every event. Off unless the user wants it. */
    val keepSound: Boolean = false,
    /** UNPROCESSED, VOICE_RECOGNITION or MIC; empty: the best that the phone has. */
    val source: String = "",
    /** Of the input device; empty: the system's choice. */
    val device: String = "",
)

/** An event in the list. */
class Entry(
    val event: Event,
    val label: String,
    /** When it began, in milliseconds since 1970. */
    val atMs: Long,
    /** Name of the WAV file with its sound, or null. */
    val sound: String?,
)

/** All that the Live screen draws. One object is filled again and again, on the UI thread. */
class LiveState {
    var status = Status.LOADING
    var detail = ""
    /** Names of the tags with the highest smoothed probability. */
    val names = arrayOfNulls<String>(TOP)
    val probs = FloatArray(TOP)
    var tags = 0
    var rmsDb = Level.FLOOR_DB
    var peakDb = Level.FLOOR_DB
    /** From the last sample of a window to its tags. */
    var latencyMs = 0.0
    /** Time to predict one window, divided by the hop: above 1 the phone is too slow. */
    var realTime = 0.0
    var dropped = 0L
    /** Seconds since the stream began. */
    var seconds = 0.0
    val pixels = ByteArray(Timeline.COLUMNS * Mel.BANDS)
    var columns = 0L
    /** Events of the last 30 s, those that go on last. */
    val spanClass = IntArray(SPANS)
    val spanName = arrayOfNulls<String>(SPANS)
    val spanStart = DoubleArray(SPANS)
    val spanEnd = DoubleArray(SPANS)
    var spans = 0
    /** Rises with every change of the list, which is then drawn anew. */
    var listVersion = 0

    val listening get() = when (status) {
        Status.STARTING, Status.LISTENING, Status.SILENCED, Status.ZEROS, Status.TAKEN, Status.UNPLUGGED -> true
        else -> false
    }

    companion object {
        const val TOP = 6
        const val SPANS = 24
    }
}

/** What the screens and the service can see and do. They know nothing of audio, engines or each other. */
interface Demo {
    val settings: Settings
    val bundle: Bundle?
    val runtime: String
    val entries: List<Entry>
    /** Sources and devices that can be chosen: (key, name to show). */
    val sources: List<Pair<String, String>>
    val devices: List<Pair<String, String>>

    fun change(settings: Settings)

    /** Request the service that may keep the microphone; the screen must be in front, with the permission. */
    fun requestListening()

    /** Called by that service, once it may listen. */
    fun startListening()

    /** Called by that service where the system does not let it listen. */
    fun refuse()

    fun stopListening()

    /** Tag a sound file or load a zip of a bundle, by address; in the background. */
    fun openFile(address: String)

    fun openBundle(address: String)

    fun useBuiltIn()

    /** Empty the list; the sounds that were kept for it are deleted. */
    fun clearEntries()

    /** Write the list as CSV: its address for other apps, or null where the phone has no room. */
    fun csvAddress(): String?

    /** The address of an entry's sound for other apps, or null: Android may empty the cache at any time. */
    fun soundAddress(entry: Entry): String?

    fun fill(state: LiveState)

    /** [changed] is called on any thread, and often: post to the UI at most once at a time. */
    fun observe(changed: Runnable)

    fun forget(changed: Runnable)
}

/** The application object gives screens and service their [Demo]. */
interface HasDemo {
    val demo: Demo
}
