package org.cededge.demo.audio

import android.content.Context
import android.media.AudioFormat
import android.media.MediaCodec
import android.media.MediaExtractor
import android.media.MediaFormat
import android.net.Uri
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.cededge.demo.core.InputError
import org.cededge.demo.core.Mixer
import org.cededge.demo.core.Resampler

/** Decodes a sound file by the phone's own decoders into mono samples at one rate, piece by piece. */
class SoundFile(private val context: Context, private val address: Uri, private val rateHz: Int) {
    private var floats = FloatArray(0)
    private var mixed = FloatArray(0)
    private var resampled = FloatArray(0)
    private var mixer: Mixer? = null
    private var resampler: Resampler? = null
    private var channels = 0
    private var rate = 0

    /** Calls [onSamples] until the file ends or [stopped]. Raises InputError for a file that cannot be decoded. */
    fun decode(stopped: () -> Boolean, onSamples: (FloatArray, Int) -> Unit) {
        val extractor = MediaExtractor()
        var codec: MediaCodec? = null
        try {
            try {
                extractor.setDataSource(context, address, null)
            } catch (e: SecurityException) {
                throw e
            } catch (e: RuntimeException) { // other apps' providers throw what they like
                throw IOException(e)
            }
            val format = select(extractor)
            codec = MediaCodec.createDecoderByType(format.getString(MediaFormat.KEY_MIME)!!)
            codec.configure(format, null, null, 0)
            codec.start()
            pump(extractor, codec, format, stopped, onSamples)
        } catch (e: IOException) {
            throw InputError("The file cannot be opened: choose a sound file that this phone can play.")
        } catch (e: IllegalArgumentException) {
            throw InputError("This phone has no decoder for the file: choose a WAV, MP3, M4A or OGG file.")
        } catch (e: IllegalStateException) { // MediaCodec.CodecException is one of them
            throw InputError("The file is damaged: its sound cannot be decoded to the end.")
        } finally {
            codec?.release()
            extractor.release()
        }
    }

    private fun select(extractor: MediaExtractor): MediaFormat {
        for (i in 0 until extractor.trackCount) {
            val format = extractor.getTrackFormat(i)
            if (format.getString(MediaFormat.KEY_MIME)?.startsWith("audio/") == true) {
                extractor.selectTrack(i)
                return format
            }
        }
        throw InputError("The file holds no sound: choose a sound file.")
    }

    private fun pump(extractor: MediaExtractor, codec: MediaCodec, first: MediaFormat, stopped: () -> Boolean, onSamples: (FloatArray, Int) -> Unit) {
        val info = MediaCodec.BufferInfo()
        var format = first
        var fed = false
        while (!stopped()) {
            if (!fed) {
                val i = codec.dequeueInputBuffer(WAIT_US)
                if (i >= 0) {
                    val n = extractor.readSampleData(codec.getInputBuffer(i)!!, 0)
                    fed = n < 0
                    codec.queueInputBuffer(i, 0, maxOf(n, 0), maxOf(0, extractor.sampleTime), if (fed) MediaCodec.BUFFER_FLAG_END_OF_STREAM else 0)
                    if (!fed) extractor.advance()
                }
            }
            val o = codec.dequeueOutputBuffer(info, WAIT_US)
            if (o == MediaCodec.INFO_OUTPUT_FORMAT_CHANGED) format = codec.outputFormat
            if (o < 0) continue
            val data = codec.getOutputBuffer(o)!!
            data.position(info.offset)
            data.limit(info.offset + info.size)
            emit(data, format, onSamples)
            codec.releaseOutputBuffer(o, false)
            if (info.flags and MediaCodec.BUFFER_FLAG_END_OF_STREAM != 0) break
        }
        flush(onSamples)
    }

    /** PCM of any channel count and encoding -> mono floats, resampled. */
    private fun emit(data: ByteBuffer, format: MediaFormat, onSamples: (FloatArray, Int) -> Unit) {
        val fileChannels = format.getInteger(MediaFormat.KEY_CHANNEL_COUNT)
        val fileRate = format.getInteger(MediaFormat.KEY_SAMPLE_RATE)
        if (fileChannels != channels || fileRate != rate) {
            flush(onSamples)
            begin(fileChannels, fileRate)
        }
        val encoding = if (format.containsKey(MediaFormat.KEY_PCM_ENCODING)) format.getInteger(MediaFormat.KEY_PCM_ENCODING) else AudioFormat.ENCODING_PCM_16BIT
        data.order(ByteOrder.nativeOrder())
        val frames = data.remaining() / (channels * bytesPerSample(encoding))
        if (floats.size < frames * channels) floats = FloatArray(frames * channels)
        for (i in 0 until frames * channels) {
            floats[i] = sample(data, encoding)
            // NaN is in no range.
            if (floats[i] !in -MAX_SAMPLE..MAX_SAMPLE) throw InputError("The file is damaged: some of its samples are no sound (${floats[i]}).")
        }
        val m = mixer ?: return resample(floats, frames, onSamples)
        if (mixed.size < m.room(frames)) mixed = FloatArray(m.room(frames))
        resample(mixed, m.push(floats, frames, mixed), onSamples)
    }

    private fun begin(fileChannels: Int, fileRate: Int) {
        if (fileChannels !in 1..MAX_CHANNELS || !Resampler.fits(fileRate, rateHz)) {
            throw InputError("The file has $fileChannels channels at $fileRate Hz: convert it to a WAV file of 44100 Hz.")
        }
        channels = fileChannels
        rate = fileRate
        mixer = if (channels == 1) null else Mixer(channels, rate)
        resampler = if (rate == rateHz) null else Resampler(rate, rateHz)
    }

    private fun resample(samples: FloatArray, count: Int, onSamples: (FloatArray, Int) -> Unit) {
        val r = resampler
        if (r == null) {
            if (count > 0) onSamples(samples, count)
            return
        }
        if (resampled.size < r.room(count)) resampled = FloatArray(r.room(count))
        val n = r.process(samples, count, resampled)
        if (n > 0) onSamples(resampled, n)
    }

    /** Hand on the samples that the mixer and the resampler still hold. */
    private fun flush(onSamples: (FloatArray, Int) -> Unit) {
        mixer?.let { m ->
            if (mixed.size < m.room(0)) mixed = FloatArray(m.room(0))
            resample(mixed, m.finish(mixed), onSamples)
        }
        resampler?.let { r ->
            if (resampled.size < r.room(0)) resampled = FloatArray(r.room(0))
            val n = r.finish(resampled)
            if (n > 0) onSamples(resampled, n)
        }
    }

    private fun bytesPerSample(encoding: Int) = when (encoding) {
        AudioFormat.ENCODING_PCM_8BIT -> 1
        AudioFormat.ENCODING_PCM_16BIT -> 2
        PCM_24BIT -> 3
        PCM_32BIT, AudioFormat.ENCODING_PCM_FLOAT -> 4
        else -> throw InputError("The file's samples are of an unknown kind: convert it to a WAV file of 16 bits.")
    }

    private fun sample(data: ByteBuffer, encoding: Int): Float = when (encoding) {
        AudioFormat.ENCODING_PCM_8BIT -> ((data.get().toInt() and 255) - 128) / 128f // the only kind without a sign
        AudioFormat.ENCODING_PCM_16BIT -> data.getShort() / 32768f
        // Three bytes, the lowest first: every Android has that order.
        PCM_24BIT -> ((data.get().toInt() and 255) or (data.get().toInt() and 255 shl 8) or (data.get().toInt() shl 16)) / 8388608f
        PCM_32BIT -> data.getInt() / 2147483648f
        else -> data.getFloat()
    }

    private companion object {
        const val WAIT_US = 10_000L
        const val MAX_CHANNELS = 64
        const val MAX_SAMPLE = 8f // as ced_edge/audio/mix.py: decoders of lossy formats exceed 1
        const val PCM_24BIT = 21 // AudioFormat has the names since Android 12
        const val PCM_32BIT = 22
    }
}
