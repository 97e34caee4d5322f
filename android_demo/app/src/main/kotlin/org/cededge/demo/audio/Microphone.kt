package org.cededge.demo.audio

import android.Manifest
import android.annotation.SuppressLint
import android.content.Context
import android.content.pm.PackageManager
import android.media.AudioDeviceCallback
import android.media.AudioDeviceInfo
import android.media.AudioFormat
import android.media.AudioManager
import android.media.AudioRecord
import android.media.AudioRecordingConfiguration
import android.media.AudioRouting
import android.media.MediaRecorder.AudioSource
import android.os.Build
import android.os.Handler
import android.os.Looper
import org.cededge.demo.core.Resampler
import org.cededge.demo.core.Status

/**
 * Owns an AudioRecord for its whole life: opens it, reads it on a thread of its own, releases it on stop and on every
 * error, and opens it again after a wait that grows. Samples come out as floats at [rateHz].
 */
class Microphone(
    private val context: Context,
    private val rateHz: Int,
    private val source: String,
    private val device: String,
    private val onSamples: (FloatArray, Int) -> Unit,
    private val onStatus: (Status, retryS: Int) -> Unit,
) : AutoCloseable {
    private val audio = context.getSystemService(AudioManager::class.java)
    private val lock = Object()
    private var running = true
    private var record: AudioRecord? = null

    @Volatile private var deviceMissing = false

    @Volatile private var silenced = false

    // API 29 and later name the reason for zeros: another app has the microphone, or its switch is off.
    private val configurations = object : AudioManager.AudioRecordingCallback() {
        override fun onRecordingConfigChanged(configs: List<AudioRecordingConfiguration>) {
            val session = synchronized(lock) { record?.audioSessionId } ?: return
            val ours = configs.firstOrNull { it.clientAudioSessionId == session } ?: return
            if (Build.VERSION.SDK_INT < 29) return
            silenced = ours.isClientSilenced
            onStatus(listeningStatus(), 0)
        }
    }

    // A USB or Bluetooth microphone that is unplugged: Android goes on with another one, without an error.
    private val plugged = object : AudioDeviceCallback() {
        override fun onAudioDevicesAdded(devices: Array<AudioDeviceInfo>) = checkDevice()

        override fun onAudioDevicesRemoved(devices: Array<AudioDeviceInfo>) = checkDevice()
    }
    private val routed = AudioRouting.OnRoutingChangedListener { checkDevice() }
    private val bluetooth = BluetoothLink(audio)
    private val main = Handler(Looper.getMainLooper())
    private val thread = Thread({ run() }, "microphone")

    init {
        audio.registerAudioRecordingCallback(configurations, main)
        if (device.isNotEmpty()) audio.registerAudioDeviceCallback(plugged, main)
        thread.start()
    }

    /** Stop and release; returns when the AudioRecord is gone. */
    override fun close() {
        synchronized(lock) {
            running = false
            lock.notifyAll()
        }
        audio.unregisterAudioRecordingCallback(configurations)
        audio.unregisterAudioDeviceCallback(plugged)
        if (Thread.currentThread() != thread) thread.join()
    }

    private fun run() {
        var retryS = 0
        while (synchronized(lock) { running }) {
            if (context.checkSelfPermission(Manifest.permission.RECORD_AUDIO) != PackageManager.PERMISSION_GRANTED) {
                onStatus(Status.REFUSED, 0)
                return
            }
            val opened = open()
            // Sound that came proves that the microphone works: the next wait is short again.
            if (opened != null && read(opened)) retryS = 0
            if (!synchronized(lock) { running }) return
            retryS = minOf(MAX_RETRY_S, if (retryS == 0) 1 else 2 * retryS)
            onStatus(Status.TAKEN, retryS)
            synchronized(lock) { if (running) lock.wait(1000L * retryS) }
        }
    }

    /** Read until it is stopped or fails; whether any sound came. Always releases the record. */
    private fun read(opened: AudioRecord): Boolean {
        var any = false
        try {
            synchronized(lock) { record = opened }
            if (device.isNotEmpty()) opened.addOnRoutingChangedListener(routed, main)
            opened.startRecording()
            if (opened.recordingState != AudioRecord.RECORDSTATE_RECORDING) return false
            onStatus(listeningStatus(), 0)
            val rate = opened.sampleRate
            val shorts = ShortArray(rate / PIECES_PER_S)
            val floats = FloatArray(shorts.size)
            val resampler = if (rate == rateHz) null else Resampler(rate, rateHz)
            val resampled = resampler?.let { FloatArray(it.room(shorts.size)) } ?: floats
            while (synchronized(lock) { running }) {
                val n = opened.read(shorts, 0, shorts.size)
                if (n < 0) return any // such as ERROR_DEAD_OBJECT: the device or the audio server is gone
                if (n == 0) synchronized(lock) { if (running) lock.wait(EMPTY_MS) } // a loop without a wait would only burn power
                for (i in 0 until n) floats[i] = shorts[i] / 32768f
                val out = resampler?.process(floats, n, resampled) ?: n
                if (out > 0) onSamples(resampled, out)
                any = any || n > 0
            }
            return any
        } catch (e: IllegalStateException) {
            return any // startRecording refuses where another app holds the microphone
        } finally {
            synchronized(lock) { record = null }
            silenced = false
            if (device.isNotEmpty()) opened.removeOnRoutingChangedListener(routed)
            opened.release()
            bluetooth.close()
        }
    }

    private fun chosenDevice() = audio.getDevices(AudioManager.GET_DEVICES_INPUTS).firstOrNull { key(it) == device }

    /** The chosen device came or went, or Android records from another one. */
    private fun checkDevice() {
        val open = synchronized(lock) { record } ?: return
        val chosen = chosenDevice()
        if (chosen != null && deviceMissing) open.preferredDevice = chosen
        val source = open.routedDevice // null where Android has not decided yet
        val missing = chosen == null || (source != null && key(source) != device)
        if (missing == deviceMissing) return
        deviceMissing = missing
        onStatus(listeningStatus(), 0)
    }

    private fun listeningStatus() = when {
        silenced -> Status.SILENCED
        deviceMissing -> Status.UNPLUGGED
        else -> Status.LISTENING
    }

    /** An initialized record at the first rate that the phone gives, or null. */
    @SuppressLint("MissingPermission") // run() has checked it
    private fun open(): AudioRecord? {
        for (rate in intArrayOf(rateHz, 48_000, 44_100)) {
            val bytes = AudioRecord.getMinBufferSize(rate, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT)
            if (bytes <= 0) continue
            val made = try {
                AudioRecord(sourceNumber(), rate, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT, maxOf(bytes, rate / 2))
            } catch (e: IllegalArgumentException) {
                continue
            }
            if (made.state == AudioRecord.STATE_INITIALIZED) {
                val chosen = chosenDevice()
                deviceMissing = device.isNotEmpty() && chosen == null
                if (chosen != null) {
                    made.preferredDevice = chosen
                    bluetooth.open(chosen)
                }
                return made
            }
            made.release()
        }
        return null
    }

    private fun sourceNumber() = SOURCES[source] ?: SOURCES.getValue(if (hasUnprocessed(audio)) "UNPROCESSED" else "VOICE_RECOGNITION")

    companion object {
        private const val PIECES_PER_S = 20
        private const val MAX_RETRY_S = 8
        private const val EMPTY_MS = 20L
        private val SOURCES = mapOf(
            "UNPROCESSED" to AudioSource.UNPROCESSED, // noise suppression would spoil the sound
            "VOICE_RECOGNITION" to AudioSource.VOICE_RECOGNITION,
            "MIC" to AudioSource.MIC,
        )

        private fun hasUnprocessed(audio: AudioManager) = audio.getProperty(AudioManager.PROPERTY_SUPPORT_AUDIO_SOURCE_UNPROCESSED) == "true"

        /** Names of the sources that this phone has, the best first. */
        fun sources(context: Context): List<String> =
            SOURCES.keys.filter { it != "UNPROCESSED" || hasUnprocessed(context.getSystemService(AudioManager::class.java)) }

        /** Input devices: (key that stays the same when it is plugged in again, its name). */
        fun devices(context: Context): List<Pair<String, AudioDeviceInfo>> =
            context.getSystemService(AudioManager::class.java).getDevices(AudioManager.GET_DEVICES_INPUTS).map { key(it) to it }.distinctBy { it.first }

        private fun key(d: AudioDeviceInfo) = "${d.type}:${d.productName}"
    }
}
