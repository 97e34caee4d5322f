package org.cededge.demo

import android.Manifest
import android.widget.Button
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.shadows.ShadowAudioRecord

/** The whole path: a recording comes out of AudioRecord, the bundle in the APK names its sounds on the screen. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [26, 35], qualifiers = "w411dp-h731dp-port-xhdpi")
class RealModelTest {
    private val services = Services()

    @After fun stop() {
        services.destroy()
        ShadowAudioRecord.clearSource()
    }

    @Test fun aDogIsOnTheScreen() {
        val microphone = FakeMicrophone(clip).apply { limit = 2 * 16_000 + 8_000 }
        ShadowAudioRecord.setSourceProvider { microphone }
        shadowOf(app).grantPermissions(Manifest.permission.RECORD_AUDIO)
        val activity = launch().setup().get()
        until("the model is loaded") { activity.text(R.id.status) == app.getString(R.string.idle) }
        activity.findViewById<Button>(R.id.listen).performClick()
        services.run()
        until("the dog is on the screen") { "Dog " in activity.bars() } // "Animal" may be first, which is right as well
        microphone.limit = Int.MAX_VALUE
        until("the event of the dog has ended") { center.entries.any { it.label == "Dog" } }
        val dog = center.entries.first { it.label == "Dog" }.event
        assertTrue("$dog", dog.startS < 1.0 && dog.endS in 2.0..4.0 && dog.peak > 0.7)
        activity.findViewById<Button>(R.id.listen).performClick()
        services.run()
        until("the app has stopped") { activity.text(R.id.status) == app.getString(R.string.idle) }
        assertEquals(app.getString(R.string.listen), activity.text(R.id.listen))
    }
}
