package org.cededge.demo.service

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.content.pm.ServiceInfo
import android.os.Build
import android.os.Handler
import android.os.IBinder
import android.os.Looper
import java.util.concurrent.atomic.AtomicBoolean
import org.cededge.demo.R
import org.cededge.demo.core.Demo
import org.cededge.demo.core.HasDemo
import org.cededge.demo.core.LiveState

/**
 * Keeps the app listening while its screen is off or another app is in front. Android allows that only to a service
 * with a notification. The service holds no sound: it starts and stops the [Demo] and shows its last event.
 */
class ListenService : Service() {
    private val demo: Demo get() = (application as HasDemo).demo
    private val main = Handler(Looper.getMainLooper())
    private val pending = AtomicBoolean()
    private val state = LiveState()
    private var shown = -1
    private val changed = Runnable { if (pending.compareAndSet(false, true)) main.post(update) }
    private val update = Runnable {
        pending.set(false)
        demo.fill(state)
        if (!state.listening) stopSelf()
        else if (state.listVersion != shown) {
            shown = state.listVersion
            getSystemService(NotificationManager::class.java).notify(ID, notification())
        }
    }

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        if (intent?.action == STOP) {
            demo.stopListening()
            stopSelf()
            return START_NOT_STICKY
        }
        try {
            if (Build.VERSION.SDK_INT >= 29) startForeground(ID, notification(), ServiceInfo.FOREGROUND_SERVICE_TYPE_MICROPHONE)
            else startForeground(ID, notification())
        } catch (e: RuntimeException) { // without the permission, or from the background: Android 14 refuses
            demo.refuse()
            stopSelf()
            return START_NOT_STICKY
        }
        demo.observe(changed)
        demo.startListening()
        return START_NOT_STICKY // after the app was killed the microphone may not be opened from the background
    }

    override fun onDestroy() {
        demo.forget(changed)
        main.removeCallbacks(update)
        demo.stopListening()
        super.onDestroy()
    }

    private fun notification(): Notification {
        val manager = getSystemService(NotificationManager::class.java)
        manager.createNotificationChannel(NotificationChannel(CHANNEL, getString(R.string.listening), NotificationManager.IMPORTANCE_LOW))
        val open = PendingIntent.getActivity(this, 0, packageManager.getLaunchIntentForPackage(packageName), PendingIntent.FLAG_IMMUTABLE)
        val stop = PendingIntent.getService(this, 1, intent(this, STOP), PendingIntent.FLAG_IMMUTABLE)
        val last = demo.entries.lastOrNull()
        return Notification.Builder(this, CHANNEL)
            .setSmallIcon(R.drawable.ic_ear)
            .setContentTitle(getString(R.string.listening))
            .setContentText(if (last == null) getString(R.string.no_event_yet) else getString(R.string.last_event, last.label))
            .setContentIntent(open)
            .setOngoing(true)
            .setShowWhen(false)
            .addAction(Notification.Action.Builder(null, getString(R.string.stop), stop).build())
            .build()
    }

    companion object {
        private const val ID = 1
        private const val CHANNEL = "listening"
        private const val STOP = "org.cededge.demo.STOP"

        private fun intent(context: Context, action: String?) = Intent(context, ListenService::class.java).setAction(action)

        /** Start listening; the app has the permission and is in front. It ends by itself when listening ends. */
        fun start(context: Context) {
            context.startForegroundService(intent(context, null))
        }
    }
}
