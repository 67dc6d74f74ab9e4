// Runs an ONNX graph on the wasm build of onnxruntime-web under Node: node web.mjs JOB.json (written by web.py).
//
// The file holds {"package": folder of onnxruntime-web, "model": file, "batches": [{"inputs": [{"name", "dims", "file"}],
// "out": prefix}]}, with tensors as raw little-endian float32. Output k of a batch is written to PREFIX + k.
// Prints one JSON line: {"outputs": [[dims, ...] per batch]} or {"error": text}.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const ort = await import(pathToFileURL(join(job.package, "dist", "ort.wasm.min.mjs")).href);
ort.env.wasm.numThreads = 1; // no workers
ort.env.logLevel = "error";

function tensor({ dims, file }) {
  const bytes = readFileSync(file);
  return new ort.Tensor("float32", new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), dims);
}

async function run({ model, batches }) {
  const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
  const outputs = [];
  for (const { inputs, out } of batches) {
    const answer = await session.run(Object.fromEntries(inputs.map((one) => [one.name, tensor(one)])));
    outputs.push(
      session.outputNames.map((name, k) => {
        const { data, dims, type } = answer[name];
        if (type !== "float32") throw new Error(`output ${name} is ${type}, expected float32`);
        writeFileSync(out + k, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
        return [...dims];
      }),
    );
  }
  await session.release();
  return { outputs };
}

console.log(JSON.stringify(await run(job).catch((error) => ({ error: String(error.message ?? error) }))));
