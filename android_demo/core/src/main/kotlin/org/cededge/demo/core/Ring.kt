package org.cededge.demo.core

/**
 * The newest samples of a stream, by absolute index. Memory is taken once; old samples are overwritten.
 * Not thread-safe: the owner holds a lock.
 */
class Ring(val capacity: Int) {
    private val data = FloatArray(capacity)

    /** Samples written since the beginning. */
    var end = 0L
        private set

    /** Index of the oldest sample that is still there. */
    val start get() = maxOf(0L, end - capacity)

    fun write(samples: FloatArray, offset: Int, count: Int) {
        var done = maxOf(0, count - capacity) // of a piece longer than the ring only its end stays
        end += done
        while (done < count) {
            val at = (end % capacity).toInt()
            val n = minOf(count - done, capacity - at)
            System.arraycopy(samples, offset + done, data, at, n)
            done += n
            end += n
        }
    }

    /** Copy samples [from, to) to [target]. They must still be there. */
    fun read(from: Long, to: Long, target: FloatArray) {
        require(from in start..to && to <= end) { "samples $from to $to are not among $start to $end" }
        var at = from
        while (at < to) {
            val i = (at % capacity).toInt()
            val n = minOf(to - at, (capacity - i).toLong()).toInt()
            System.arraycopy(data, i, target, (at - from).toInt(), n)
            at += n
        }
    }
}
