// onnxruntime-web: `node onnxruntime_web_client.mjs MODEL.onnx CLIP.wav...` -> a JSON line of all scores per clip.
// Run it in the folder where onnxruntime-web is installed. A web page would import it instead.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const ort = createRequire(join(process.cwd(), "package.json"))("onnxruntime-web");
const [model, ...clips] = process.argv.slice(2);
const labels = readFileSync(join(dirname(model), "labels.txt"), "utf8").trimEnd().split("\n");

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model));
for (const clip of clips) {
  const bytes = readFileSync(clip).subarray(44); // skip the plain 44-byte header; then 16-bit mono at 16,000 Hz
  const samples = Float32Array.from({ length: bytes.length / 2 }, (_, i) => bytes.readInt16LE(2 * i) / 32768);
  const { prob } = await session.run({ waveform: new ort.Tensor("float32", samples, [1, samples.length]) });
  console.log(JSON.stringify(Object.fromEntries(labels.map((label, i) => [label, prob.data[i]]))));
}
