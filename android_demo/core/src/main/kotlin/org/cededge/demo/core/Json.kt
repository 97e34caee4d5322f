package org.cededge.demo.core

/** A number as it stands in the file: hashing must not write it anew. */
data class JsonNumber(val text: String)

/** Reads JSON into maps, lists, strings, [JsonNumber], booleans and null; writes it as Python's `json.dumps` does. */
object Json {
    /** Raises InputError where [text] is no JSON. */
    fun parse(text: String): Any? = Parser(text).run {
        val value = value(0)
        space()
        if (at < text.length) fail()
        value
    }

    /** As `json.dumps(value, sort_keys=True)`: the text that a bundle's hash is taken of. */
    fun canonical(value: Any?, out: StringBuilder = StringBuilder()): String {
        when (value) {
            is Map<*, *> -> {
                out.append('{')
                value.keys.map { it as String }.sorted().forEachIndexed { i, key ->
                    if (i > 0) out.append(", ")
                    quote(key, out)
                    out.append(": ")
                    canonical(value[key], out)
                }
                out.append('}')
            }
            is List<*> -> {
                out.append('[')
                value.forEachIndexed { i, item ->
                    if (i > 0) out.append(", ")
                    canonical(item, out)
                }
                out.append(']')
            }
            is String -> quote(value, out)
            is JsonNumber -> out.append(value.text)
            else -> out.append(value.toString())
        }
        return out.toString()
    }

    private fun quote(text: String, out: StringBuilder) {
        out.append('"')
        for (c in text) {
            val short = "\"\\\n\r\t\b\u000c".indexOf(c)
            when {
                short >= 0 -> out.append('\\').append("\"\\nrtbf"[short])
                c < ' ' || c > '~' -> out.append(String.format("\\u%04x", c.code))
                else -> out.append(c)
            }
        }
        out.append('"')
    }

    private class Parser(private val text: String) {
        var at = 0

        fun fail(): Nothing = throw InputError("The file is no JSON (character $at): copy it again.")

        fun space() {
            while (at < text.length && text[at] in " \t\r\n") at++
        }

        fun value(depth: Int): Any? {
            if (depth > 64) fail() // a file made to exhaust the stack
            space()
            return when (text.getOrNull(at)) {
                '{' -> LinkedHashMap<String, Any?>().also { map ->
                    items('}') {
                        space()
                        if (text.getOrNull(at) != '"') fail()
                        val key = string()
                        space()
                        take(":")
                        map[key] = value(depth + 1)
                    }
                }
                '[' -> ArrayList<Any?>().also { list -> items(']') { list += value(depth + 1) } }
                '"' -> string()
                't' -> true.also { take("true") }
                'f' -> false.also { take("false") }
                'n' -> null.also { take("null") }
                else -> number()
            }
        }

        private fun take(word: String) {
            if (!text.startsWith(word, at)) fail()
            at += word.length
        }

        private fun items(end: Char, item: () -> Unit) {
            at++
            space()
            if (text.getOrNull(at) == end) {
                at++
                return
            }
            while (true) {
                item()
                space()
                when (text.getOrNull(at++)) {
                    ',' -> continue
                    end -> return
                    else -> fail()
                }
            }
        }

        private fun string(): String {
            val out = StringBuilder()
            at++
            while (true) {
                when (val c = text.getOrNull(at++) ?: fail()) {
                    '"' -> return out.toString()
                    '\\' -> {
                        val e = text.getOrNull(at++) ?: fail()
                        val known = "\"\\/nrtbf".indexOf(e)
                        if (e == 'u') {
                            val code = text.substring(at, minOf(at + 4, text.length)).toIntOrNull(16) ?: fail()
                            out.append(code.toChar())
                            at += 4
                        } else if (known >= 0) out.append("\"\\/\n\r\t\b\u000c"[known]) else fail()
                    }
                    else -> if (c < ' ') fail() else out.append(c)
                }
            }
        }

        private fun number(): JsonNumber {
            val from = at
            while (at < text.length && text[at] in "+-0123456789.eE") at++
            val number = text.substring(from, at)
            if (number.toDoubleOrNull() == null) fail()
            return JsonNumber(number)
        }
    }
}
