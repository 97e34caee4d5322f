package org.cededge.demo

import android.app.Application
import org.cededge.demo.core.Demo
import org.cededge.demo.core.HasDemo

/** Lives as long as the process: what it holds survives rotation, and the screen may come and go. */
class DemoApp : Application(), HasDemo {
    lateinit var center: Center
        private set
    override val demo: Demo get() = center

    override fun onCreate() {
        super.onCreate()
        center = Center(this)
    }
}
