// Asks a cloner for a voice and for a failure, as a service in TypeScript would.
import { readFile } from "node:fs/promises";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { CloningService, VoiceState } from "./gen/precall/v1/cloning_pb.js";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const [target, token, file] = process.argv.slice(2);
const client = createClient(CloningService, createGrpcTransport({ baseUrl: `http://${target}` }));
const options = { headers: { authorization: `Bearer ${token}` }, timeoutMs: 30_000 };

const cloned = await client.cloneVoice(
  { caller: { name: "Ivan", phoneNumber: "+31612345678" }, sample: await readFile(file) },
  options,
);
console.log(cloned.voice?.voiceId);
for await (const answer of client.watchVoice({ voiceId: cloned.voice?.voiceId }, options)) {
  console.log(VoiceState[answer.voice?.state ?? 0]);
  break;
}
try {
  await client.getVoice({ voiceId: "voice_of_nobody" }, options);
} catch (failure) {
  const known = ConnectError.from(failure);
  for (const info of known.findDetails(ErrorInfoSchema)) {
    console.log(Code[known.code], info.reason);
  }
}
process.exit(); // the connection would keep it alive
