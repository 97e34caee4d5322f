package org.cededge.demo

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Insets
import android.os.Build
import android.view.View
import android.view.ViewGroup
import android.view.WindowInsets
import android.widget.Button
import android.widget.SeekBar
import android.widget.TextView
import java.io.File
import java.util.Locale
import java.util.TimeZone
import org.cededge.demo.core.Bundle
import org.cededge.demo.core.Settings
import org.cededge.demo.core.Status
import org.cededge.demo.ui.MainActivity
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** Golden pictures of the real views, and what can be checked of every view in them. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(application = FakeApp::class, sdk = [35], qualifiers = "en-rUS-w411dp-h731dp-port-notnight-xhdpi")
class ScreensTest {
    private val demo get() = (app as FakeApp).demo

    @Before fun sameEverywhere() {
        TimeZone.setDefault(TimeZone.getTimeZone("UTC"))
        Locale.setDefault(Locale.US)
    }

    private fun listen(): MainActivity {
        demo.playTheClip()
        demo.status = Status.LISTENING
        return launch().setup().get()
    }

    private fun picture(a: MainActivity, name: String) {
        val root = a.window.decorView
        val drawn = Bitmap.createBitmap(root.width, root.height, Bitmap.Config.ARGB_8888)
        root.draw(Canvas(drawn))
        compare(drawn, name)
        checkViews(root)
    }

    private fun compare(drawn: Bitmap, name: String) {
        val file = File(demoFolder, "golden/screens/$name.png")
        if (System.getenv("SCREENS") == "write") {
            file.parentFile!!.mkdirs()
            file.outputStream().use { drawn.compress(Bitmap.CompressFormat.PNG, 100, it) }
            return
        }
        assertTrue("no golden picture $name: SCREENS=write makes it", file.isFile)
        val golden = BitmapFactory.decodeFile(file.path)
        assertEquals("$name: size", "${golden.width} x ${golden.height}", "${drawn.width} x ${drawn.height}")
        val a1 = IntArray(drawn.width * drawn.height).also { drawn.getPixels(it, 0, drawn.width, 0, 0, drawn.width, drawn.height) }
        val a2 = IntArray(a1.size).also { golden.getPixels(it, 0, drawn.width, 0, 0, drawn.width, drawn.height) }
        val different = a1.indices.count { a1[it] != a2[it] }
        if (different > 0) File(System.getProperty("java.io.tmpdir"), "$name.png").outputStream().use { drawn.compress(Bitmap.CompressFormat.PNG, 100, it) }
        assertEquals("$name: pixels that differ; the new picture lies in .venv/android/test/tmp", 0, different)
    }

    /** Every button can be hit and has words; no text is cut off or too pale. */
    private fun checkViews(view: View) {
        if (view.visibility != View.VISIBLE) return
        val dp = view.resources.displayMetrics.density
        if (view.isClickable && view.isShown && view.height > 0) assertTrue("$view: 48 dp high", view.height >= 48 * dp - 1 || view.parent is android.widget.AdapterView<*>)
        if (view is TextView && view.isShown) {
            val filled = view.id == R.id.listen || view.id == R.id.load_bundle
            val ground = app.getColor(if (filled) R.color.accent else R.color.ground)
            assertTrue("'${view.text}': contrast", contrast(blend(view.currentTextColor, ground), ground) >= 4.5)
        }
        if (view is Button) assertTrue("$view: words", view.text.isNotEmpty())
        if (view is TextView && view.layout != null) for (line in 0 until view.lineCount) {
            assertEquals("'${view.text}' is cut off", 0, view.layout.getEllipsisCount(line))
            assertTrue("'${view.text}' is wider than its view", view.layout.getLineMax(line) <= view.width - view.totalPaddingLeft - view.totalPaddingRight + 1)
        }
        if (view is ViewGroup) for (i in 0 until view.childCount) checkViews(view.getChildAt(i))
    }

    @Test fun light() = picture(listen(), "light")

    @Test @Config(sdk = [26]) fun android8() = picture(listen(), "android8")

    @Test @Config(qualifiers = "+night") fun dark() = picture(listen(), "dark")

    @Test @Config(qualifiers = "+land") fun landscape() = picture(listen(), "landscape")

    @Test @Config(qualifiers = "+ar-ldrtl") fun rightToLeft() = picture(listen(), "right_to_left")

    @Test fun doubleFont() {
        RuntimeEnvironment.setFontScale(2f)
        demo.dropped = 12
        val a = listen()
        val numbers = a.text(R.id.numbers)
        assertTrue(numbers, "Dropped hops: 12." in numbers && "too slow" in numbers)
        picture(a, "double_font")
    }

    @Test fun doubleFontSetup() {
        RuntimeEnvironment.setFontScale(2f)
        val a = launch().setup().get()
        a.findViewById<Button>(R.id.tab_setup).performClick()
        layout(a)
        picture(a, "double_font_setup")
    }

    /** Robolectric has no system bars: hand in the insets of a phone with a status bar, a navigation bar and a cutout. */
    @Test fun insets() {
        val a = listen()
        val insets = WindowInsets.Builder().setInsets(WindowInsets.Type.systemBars(), Insets.of(0, 96, 0, 96)).build()
        val root = a.findViewById<View>(R.id.root)
        root.dispatchApplyWindowInsets(insets)
        assertEquals(listOf(0, 96, 0, 96), listOf(root.paddingLeft, root.paddingTop, root.paddingRight, root.paddingBottom))
        layout(a)
        val drawn = a.window.decorView
        assertTrue("API ${Build.VERSION.SDK_INT}", drawn.height > 0)
        picture(a, "insets")
    }

    @Test fun refused() {
        demo.status = Status.REFUSED
        picture(launch().setup().get(), "refused")
    }

    private fun page(tab: Int): MainActivity {
        val a = listen()
        a.findViewById<Button>(tab).performClick()
        layout(a)
        return a
    }

    @Test fun events() = picture(page(R.id.tab_events), "events")

    @Test @Config(qualifiers = "+night") fun darkEvents() = picture(page(R.id.tab_events), "dark_events")

    @Test fun model() = picture(page(R.id.tab_model), "model")

    @Test fun setup() = picture(page(R.id.tab_setup), "setup")

    @Test @Config(qualifiers = "+night") fun darkSetup() = picture(page(R.id.tab_setup), "dark_setup")

    @Test fun theWindowIsNotLongerThanTheModelTakes() {
        demo.settings = Settings(windowS = 5.0, hopS = 4.0)
        demo.bundle = demo.bundle.run { Bundle(modelFile, kind, quantisation, modelBytes, modelSha256, sha256, 2.0, rateHz, minSamples, labels) }
        val a = launch().setup().get()
        assertEquals(app.getString(R.string.window, 2.0), a.text(R.id.window_text))
        assertEquals(app.getString(R.string.hop, 2.0), a.text(R.id.hop_text))
        assertEquals(4, a.findViewById<SeekBar>(R.id.window).max)
    }

    @Test fun everyStatusHasASentence() {
        demo.detail = "3"
        val a = launch().setup()
        val texts = Status.entries.map { s ->
            demo.status = s
            a.pause().stop().restart().start().resume()
            a.get().text(R.id.status)
        }
        assertEquals("all different", texts.size, texts.toSet().size)
        assertTrue(texts.toString(), texts.filter { it != "3" }.all { it.endsWith(".") || it.endsWith("?") })
    }

    @Test fun talkBackReadsWhatIsDrawn() {
        val a = listen()
        assertTrue(a.bars(), a.bars().startsWith("Dog ") || " percent" in a.bars())
        val timeline = a.findViewById<View>(R.id.timeline).contentDescription.toString()
        assertTrue(timeline, "Dog" in timeline && "Rain" in timeline)
        assertEquals(View.ACCESSIBILITY_LIVE_REGION_POLITE, a.findViewById<View>(R.id.status).accessibilityLiveRegion)
    }

    private fun layout(a: MainActivity) {
        org.robolectric.Shadows.shadowOf(android.os.Looper.getMainLooper()).idle()
        val root = a.window.decorView
        root.measure(View.MeasureSpec.makeMeasureSpec(root.width, View.MeasureSpec.EXACTLY), View.MeasureSpec.makeMeasureSpec(root.height, View.MeasureSpec.EXACTLY))
        root.layout(0, 0, root.width, root.height)
    }

    /** What is seen of a colour that lets the ground shine through. */
    private fun blend(c: Int, ground: Int): Int {
        fun mix(a: Int, b: Int) = (a * Color.alpha(c) + b * (255 - Color.alpha(c))) / 255
        return Color.rgb(mix(Color.red(c), Color.red(ground)), mix(Color.green(c), Color.green(ground)), mix(Color.blue(c), Color.blue(ground)))
    }

    private fun luminance(c: Int): Double {
        fun f(v: Int) = (v / 255.0).let { if (it <= 0.04045) it / 12.92 else Math.pow((it + 0.055) / 1.055, 2.4) }
        return 0.2126 * f(Color.red(c)) + 0.7152 * f(Color.green(c)) + 0.0722 * f(Color.blue(c))
    }

    private fun contrast(a: Int, b: Int): Double {
        val (x, y) = listOf(luminance(a), luminance(b)).sortedDescending()
        return (x + 0.05) / (y + 0.05)
    }

    private fun checkContrast() {
        fun c(id: Int) = app.getColor(id)
        for (ink in listOf(R.color.ink, R.color.ink_soft, R.color.accent)) assertTrue(contrast(c(ink), c(R.color.ground)) >= 4.5)
        assertTrue(contrast(c(R.color.on_accent), c(R.color.accent)) >= 4.5)
        for (colour in app.resources.getIntArray(R.array.span_colours)) assertTrue(contrast(colour, c(R.color.ground)) >= 4.5)
        assertTrue("what is no text needs 3 to 1", contrast(c(R.color.warning), c(R.color.track)) >= 3)
        assertTrue(contrast(c(R.color.accent), c(R.color.track)) >= 3)
    }

    @Test fun contrastInLight() = checkContrast()

    @Test @Config(qualifiers = "+night") fun contrastInDark() = checkContrast()
}
