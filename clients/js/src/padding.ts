// Sizes that messages are padded to: the buckets of Padmé (Nikitin et al., PETS 2019,
// section 4), and nothing below 1 KiB. Zeros behind a whole message (RFC 9292, section 3.8).

const MIN_BYTES = 1 << 10;

export function paddedSize(size: number): number {
  if (size <= MIN_BYTES) return MIN_BYTES;
  const exponent = Math.floor(Math.log2(size));
  const keptBits = Math.floor(Math.log2(exponent)) + 1;
  const step = 2 ** (exponent - keptBits);
  return Math.ceil(size / step) * step;
}

export function pad(message: Uint8Array): Uint8Array<ArrayBuffer> {
  const padded = new Uint8Array(paddedSize(message.length));
  padded.set(message);
  return padded;
}
