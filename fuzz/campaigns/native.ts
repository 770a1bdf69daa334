/** Native code that reads peers' bytes; fuzz/native has a libFuzzer target for each campaign. */
import type { NativeCampaign } from '../campaign';

const SOCKETS = ['native/comm/abort_signal.cpp', 'native/comm/socket.cpp'];

export const handshake: NativeCampaign = {
  name: 'handshake',
  about: "addresses and greetings of strangers: refused, and the right peer's connection found",
  sources: [...SOCKETS, 'native/comm/tcp_handshake.cpp'],
};

export const mesh: NativeCampaign = {
  name: 'mesh',
  about: "a peer's half of a collective, in any bytes: the data, or a typed error",
  sources: [...SOCKETS, 'native/comm/tcp_mesh.cpp'],
};
