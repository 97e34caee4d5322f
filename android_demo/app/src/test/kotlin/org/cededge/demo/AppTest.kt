package org.cededge.demo

import android.Manifest
import android.content.pm.PackageManager
import android.content.res.Configuration
import android.media.AudioDeviceInfo
import android.media.AudioManager
import android.media.AudioRecord
import android.os.Build
import android.provider.Settings
import android.view.View
import android.widget.Button
import java.util.Collections
import java.util.IdentityHashMap
import org.cededge.demo.ui.MainActivity
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertNotSame
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.shadows.AudioDeviceInfoBuilder
import org.robolectric.shadows.ShadowAlertDialog
import org.robolectric.shadows.ShadowAudioRecord
import org.robolectric.util.ReflectionHelpers

/** The app on the oldest and on the newest Android that it is for: what goes wrong on phones. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [26, 35], qualifiers = "w411dp-h731dp-port-xhdpi")
class AppTest {
    private val services = Services()
    private val microphone = FakeMicrophone()
    private val records: MutableSet<Any> = Collections.newSetFromMap(Collections.synchronizedMap(IdentityHashMap()))
    private val opened get() = records.size

    @Before fun prepare() {
        ShadowAudioRecord.setSourceProvider { record -> microphone.also { records += record } } // called at every read
        afterWork()
    }

    @After fun stop() {
        services.destroy()
        center.stopListening()
        afterWork()
        ShadowAudioRecord.clearSource()
    }

    private fun allow() = shadowOf(app).grantPermissions(Manifest.permission.RECORD_AUDIO)

    private fun MainActivity.press(id: Int) {
        findViewById<Button>(id).performClick()
        services.run()
    }

    private fun MainActivity.shows(id: Int) = text(R.id.status) == app.getString(id)

    /** An activity that listens. */
    private fun listening(): org.robolectric.android.controller.ActivityController<MainActivity> {
        allow()
        val c = launch().setup()
        c.get().press(R.id.listen)
        until("listening") { c.get().shows(R.string.listening_now) }
        return c
    }

    @Test fun theBundleInTheApkIsLoaded() {
        val a = launch().setup().get()
        assertTrue(a.text(R.id.status), a.shows(R.string.idle))
        a.press(R.id.tab_model)
        val card = a.text(R.id.card)
        for (words in listOf("-int8.onnx", "ONNX Runtime 1.2", "Classes: 527", "16 kHz", center.bundle!!.modelSha256.take(16))) assertTrue(card, words in card)
        assertEquals(View.VISIBLE, a.findViewById<View>(R.id.model).visibility)
        assertEquals(View.GONE, a.findViewById<View>(R.id.live).visibility)
    }

    @Test fun refusedPermission() {
        val c = launch().setup()
        val a = c.get()
        a.press(R.id.listen)
        val asked = shadowOf(a).lastRequestedPermission
        val names = asked.requestedPermissions.toList()
        assertEquals(Manifest.permission.RECORD_AUDIO, names[0])
        assertEquals(Build.VERSION.SDK_INT >= 33, Manifest.permission.POST_NOTIFICATIONS in names)
        a.onRequestPermissionsResult(asked.requestCode, asked.requestedPermissions, IntArray(names.size) { PackageManager.PERMISSION_DENIED })
        services.run()
        assertTrue(a.shows(R.string.refused))
        assertEquals(0, opened)
        a.press(R.id.allow)
        val intent = shadowOf(a).nextStartedActivity
        assertEquals(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, intent.action)
        assertEquals("package:org.cededge.demo", intent.dataString)
        allow() // there, and then back
        c.pause().stop().restart().start().resume()
        assertTrue(a.shows(R.string.idle))
        assertEquals(View.GONE, a.findViewById<View>(R.id.allow).visibility)
    }

    @Test fun theReasonIsGivenBeforeTheSecondRequest() {
        shadowOf(app.packageManager).setShouldShowRequestPermissionRationale(Manifest.permission.RECORD_AUDIO, true)
        val a = launch().setup().get()
        a.press(R.id.listen)
        assertNull(shadowOf(a).lastRequestedPermission)
        val dialog = ShadowAlertDialog.getLatestAlertDialog()
        assertEquals(app.getString(R.string.why_microphone), shadowOf(dialog).message)
        dialog.getButton(-1).performClick()
        shadowOf(android.os.Looper.getMainLooper()).idle()
        assertNotNull(shadowOf(a).lastRequestedPermission)
    }

    @Test fun permissionRevokedWhileListening() {
        val a = listening().get()
        shadowOf(app).denyPermissions(Manifest.permission.RECORD_AUDIO)
        microphone.result = AudioRecord.ERROR_INVALID_OPERATION
        until("the app shows it") { a.shows(R.string.refused) }
        services.run()
        assertNull("the service ends", services.running)
    }

    @Test fun rotationKeepsTheRecording() {
        val c = listening()
        val before = c.get()
        RuntimeEnvironment.setQualifiers("+land")
        c.configurationChange(Configuration(app.resources.configuration))
        c.visible()
        val after = c.get()
        assertNotSame(before, after)
        assertTrue(after.shows(R.string.listening_now))
        assertEquals(app.getString(R.string.stop), after.text(R.id.listen))
        val seconds = seconds()
        until("sound still comes") { seconds() > seconds }
        assertEquals("the microphone was opened once", 1, opened)
    }

    private fun seconds() = org.cededge.demo.core.LiveState().also(center::fill).seconds

    @Test fun microphoneLostAndBack() {
        val a = listening().get()
        microphone.result = AudioRecord.ERROR_DEAD_OBJECT
        until("it tries again") { a.text(R.id.status) == app.getString(R.string.taken, "1") }
        assertEquals("Stop stays possible", app.getString(R.string.stop), a.text(R.id.listen))
        microphone.result = 0
        until("it is back") { a.shows(R.string.listening_now) }
        assertEquals(2, opened)
    }

    @Test fun stopWhileTheMicrophoneIsLost() {
        val a = listening().get()
        microphone.result = AudioRecord.ERROR_DEAD_OBJECT
        until("it tries again") { a.text(R.id.status) == app.getString(R.string.taken, "1") }
        a.press(R.id.listen)
        services.run()
        afterWork() // would hang where the waiting thread were not woken
        assertTrue(a.shows(R.string.idle))
    }

    @Test fun nothingButZerosIsReported() {
        ShadowAudioRecord.setSourceProvider { FakeMicrophone(zeros = true) }
        allow()
        val a = launch().setup().get()
        a.press(R.id.listen)
        until("the app shows it") { a.shows(R.string.zeros) }
    }

    private fun usbMicrophone() = inputDevice(AudioDeviceInfo.TYPE_USB_DEVICE)

    private fun inputDevice(type: Int): AudioDeviceInfo {
        val device = AudioDeviceInfoBuilder.newBuilder().setType(type).build()
        // Robolectric's device is no source of sound, and on Android 8 it has no name.
        val port = ReflectionHelpers.getField<Any>(device, "mPort")
        ReflectionHelpers.setField(Class.forName("android.media.AudioPort"), port, "mRole", 1)
        if (Build.VERSION.SDK_INT == 26) ReflectionHelpers.setField(Class.forName("android.media.AudioPort"), port, "mName", "USB")
        return device
    }

    @Test fun aChosenMicrophoneThatIsUnplugged() {
        allow()
        val audio = app.getSystemService(AudioManager::class.java)
        val usb = usbMicrophone()
        shadowOf(audio).setInputDevices(listOf(usb))
        val key = center.devices.single().first
        center.change(center.settings.copy(device = key))
        assertEquals("kept for the next start", key, Store(app).settings().device)
        val a = listening().get()
        shadowOf(audio).setInputDevices(emptyList())
        microphone.result = AudioRecord.ERROR_DEAD_OBJECT
        until("it is lost") { a.text(R.id.status) == app.getString(R.string.taken, "1") }
        microphone.result = 0
        until("another one goes on") { a.shows(R.string.unplugged) }
        center.change(center.settings.copy(device = "")) // opens the microphone again at once
        until("chosen automatically") { a.shows(R.string.listening_now) }
        assertEquals(3, opened)
    }

    @Test fun anUnpluggedMicrophoneThatComesBack() {
        allow()
        val audio = app.getSystemService(AudioManager::class.java)
        val usb = usbMicrophone()
        shadowOf(audio).addInputDevice(usb, true)
        center.change(center.settings.copy(device = center.devices.single().first))
        val a = listening().get()
        shadowOf(audio).removeInputDevice(usb, true)
        until("it is gone") { a.shows(R.string.unplugged) }
        shadowOf(audio).addInputDevice(usb, true)
        until("it is back") { a.shows(R.string.listening_now) }
        assertEquals(usb, (records.single() as AudioRecord).preferredDevice)
    }

    @Test fun theMicrophoneOfABluetoothHeadset() {
        allow()
        val audio = app.getSystemService(AudioManager::class.java)
        val headset = inputDevice(AudioDeviceInfo.TYPE_BLUETOOTH_SCO)
        shadowOf(audio).setInputDevices(listOf(headset))
        if (Build.VERSION.SDK_INT >= 31) shadowOf(audio).setAvailableCommunicationDevices(listOf(headset))
        center.change(center.settings.copy(device = center.devices.single().first))
        fun linked() = if (Build.VERSION.SDK_INT >= 31) audio.communicationDevice == headset else @Suppress("DEPRECATION") audio.isBluetoothScoOn // its successor needs API 31
        val a = listening().get()
        assertTrue("without the link Android would record from another microphone", linked())
        a.press(R.id.listen)
        afterWork()
        assertFalse("music is played as before", linked())
    }

    @Test @Config(sdk = [35]) fun silencedByAnotherApp() {
        val a = listening().get()
        val audio = app.getSystemService(AudioManager::class.java)
        val ours = shadowOf(audio).createActiveRecordingConfiguration(0, 1, app.packageName)
        val session = (records.single() as AudioRecord).audioSessionId
        ReflectionHelpers.setField(ours, "mClientSessionId", session)
        for ((silenced, words) in listOf(true to R.string.silenced, false to R.string.listening_now)) {
            ReflectionHelpers.setField(ours, "mClientSilenced", silenced)
            shadowOf(audio).setActiveRecordingConfigurations(listOf(ours), true)
            until("the app shows it") { a.shows(words) }
        }
    }

    @Test fun theServiceListensWithTheScreenOff() {
        val c = listening()
        c.pause().stop()
        val seconds = seconds()
        until("sound still comes") { seconds() > seconds + 1 }
        val service = services.running!!.get()
        val notification = shadowOf(service).lastForegroundNotification
        assertEquals(app.getString(R.string.listening), shadowOf(notification).contentTitle)
        val stop = notification.actions.single()
        assertEquals(app.getString(R.string.stop), stop.title)
        val intent = shadowOf(stop.actionIntent).savedIntent
        service.onStartCommand(intent, 0, 9)
        services.run()
        afterWork()
        assertNull(services.running)
        val stopped = seconds()
        Thread.sleep(100)
        assertEquals("the microphone is released", stopped, seconds(), 0.0)
    }

    @Test fun settingsChangeWithoutLoadingTheModelAnew() {
        val c = listening()
        c.get().press(R.id.tab_setup)
        val runtime = center.bundle
        center.change(center.settings.copy(windowS = 1.0, hopS = 0.2, threshold = 0.7, smooth = 1))
        until("it goes on") { seconds() > 3 }
        assertEquals(app.getString(R.string.window, 1.0), c.get().text(R.id.window_text))
        assertTrue(runtime === center.bundle)
        assertEquals(1, opened)
        assertEquals(1.0, Store(app).settings().windowS, 0.0)
    }
}
