package org.cededge.demo.core

/** The predictions for one window. One object is filled again and again, so a hop makes no garbage. */
class Tags(classes: Int) {
    /** Seconds from the beginning of the stream. */
    var startS = 0.0
    var endS = 0.0

    /** (classes,) in [0, 1]. */
    val probs = FloatArray(classes)
}

/** The [k] largest values, the largest first; of equal ones the first index first, as numpy's stable sort does. */
class TopK(val k: Int) {
    val indices = IntArray(k)
    val values = FloatArray(k)

    /** How many there are: fewer than [k] where there are fewer classes. */
    var count = 0
        private set

    fun find(probs: FloatArray) {
        count = 0
        for (i in probs.indices) {
            if (count == k && probs[i] <= values[k - 1]) continue
            var at = if (count < k) count++ else k - 1
            while (at > 0 && values[at - 1] < probs[i]) {
                values[at] = values[at - 1]
                indices[at] = indices[at - 1]
                at--
            }
            values[at] = probs[i]
            indices[at] = i
        }
    }
}
