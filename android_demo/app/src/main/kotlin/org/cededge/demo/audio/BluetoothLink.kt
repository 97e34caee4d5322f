package org.cededge.demo.audio

import android.media.AudioDeviceInfo
import android.media.AudioManager
import android.os.Build

/** The link to a Bluetooth headset's microphone. Without it Android records from another one, though the headset is preferred. */
class BluetoothLink(private val audio: AudioManager) : AutoCloseable {
    private var open = false

    /** Open the link where [device] needs one. Android then plays all sound on the headset too. */
    fun open(device: AudioDeviceInfo) {
        if (device.type != AudioDeviceInfo.TYPE_BLUETOOTH_SCO && device.type != TYPE_BLE_HEADSET) return
        open = true
        if (Build.VERSION.SDK_INT >= 31) {
            audio.availableCommunicationDevices.firstOrNull { it.type == device.type }?.let(audio::setCommunicationDevice)
        } else @Suppress("DEPRECATION") { // the only way before Android 12
            audio.startBluetoothSco()
            audio.isBluetoothScoOn = true
        }
    }

    override fun close() {
        if (!open) return
        open = false
        if (Build.VERSION.SDK_INT >= 31) audio.clearCommunicationDevice()
        else @Suppress("DEPRECATION") { // as above
            audio.isBluetoothScoOn = false
            audio.stopBluetoothSco()
        }
    }

    private companion object {
        const val TYPE_BLE_HEADSET = 26 // AudioDeviceInfo has the name since Android 12
    }
}
