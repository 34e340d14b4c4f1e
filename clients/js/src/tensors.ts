// Open Inference Protocol v2 tensors, as bytes behind the JSON head of a message (Triton's
// extension_binary_data.md): what callers have into what a model takes, and back.
//
// Values are little-endian, as typed arrays are wherever JavaScript runs in a page.

import { concatAll, textOf, utf8 } from "./bytes.js";
import { TensorError, TransportError } from "./errors.js";
import { isObject, member } from "./json.js";

/** What v2 calls the types of values, and the arrays that hold them here. */
const ARRAYS = {
  BOOL: Uint8Array, // 0 or 1
  UINT8: Uint8Array,
  UINT16: Uint16Array,
  UINT32: Uint32Array,
  UINT64: BigUint64Array,
  INT8: Int8Array,
  INT16: Int16Array,
  INT32: Int32Array,
  INT64: BigInt64Array,
  FP16: Uint16Array, // the bits; `numbersOf` makes numbers of them
  BF16: Uint16Array, // likewise
  FP32: Float32Array,
  FP64: Float64Array,
} as const;

export type Datatype = keyof typeof ARRAYS | "BYTES";
export type NumericArray = InstanceType<(typeof ARRAYS)[keyof typeof ARRAYS]>;

/** A tensor: its values row-major, texts for BYTES. */
export interface Tensor {
  datatype: Datatype;
  shape: number[];
  data: NumericArray | string[];
}

export type Scalar = number | bigint | boolean | string | Uint8Array;
export type Nested = readonly (Scalar | NumericArray | Nested)[];

/**
 * What callers may give for a tensor: rows, or values with their shape.
 *
 * Typed arrays go as they are, NaN and infinities too; in plain arrays, which come from
 * forms and JSON, those are refused. A `Uint16Array` for FP16 or BF16 is its bits, a
 * `Uint8Array` for BOOL has 0 and 1.
 */
export type Input =
  | Nested
  | NumericArray
  | { data: NumericArray | readonly Scalar[]; shape: readonly number[]; datatype?: Datatype };

const MAX_DIMENSIONS = 16;
const MAX_TEXTS = 1 << 20;
const MAX_TEXT_BYTES = 1 << 20;
const DATATYPES = new Set<string>([...Object.keys(ARRAYS), "BYTES"]);

const isNumeric = (value: unknown): value is NumericArray =>
  ArrayBuffer.isView(value) && !(value instanceof DataView) && !(value instanceof Uint8ClampedArray);
const isFloating = (datatype: string) => /^B?F/.test(datatype);
const count = (shape: readonly number[]) => shape.reduce((product, size) => product * size, 1);

/**
 * A tensor in the model's datatype.
 *
 * @param datatype the model's; without it, what the values are.
 * @throws TensorError names the tensor: a value would change beyond rounding, rows are not
 *   of one length, values do not fit their shape.
 */
export function toTensor(name: string, input: Input, datatype?: Datatype): Tensor {
  const where = `input "${name}"`;
  const given = read(where, input);
  const wanted = datatype ?? given.datatype ?? natural(where, given.data);
  if (!DATATYPES.has(wanted)) throw new TensorError(`${where}: the model takes ${wanted}, which is not known here`);
  if (given.datatype !== undefined && given.datatype !== wanted) {
    throw new TensorError(`${where}: ${given.datatype} given, the model takes ${wanted}`);
  }
  if (wanted === "BYTES") return { datatype: wanted, shape: given.shape, data: texts(where, given.data) };
  return { datatype: wanted, shape: given.shape, data: converted(where, given.data, wanted) };
}

/** A copy of what a caller gave: it may change before all of it is sent. */
export function held(input: Input): Input {
  if (typeof input !== "object" || input === null || !("data" in input) || !("shape" in input)) return copied(input) as Input;
  const { data, shape } = input;
  return { ...("datatype" in input && { datatype: input.datatype }), data: copied(data), shape: copied(shape) } as Input;
}

function copied(value: unknown, depth = 0): unknown {
  // Of all typed arrays; not `value.slice`, which for a Buffer of Node is a view.
  if (isNumeric(value)) return Uint8Array.prototype.slice.call(value);
  return Array.isArray(value) && depth <= MAX_DIMENSIONS ? value.map((item) => copied(item, depth + 1)) : value;
}

interface Given {
  data: NumericArray | readonly unknown[];
  shape: number[];
  datatype?: Datatype | undefined;
}

function read(where: string, input: unknown): Given {
  if (isNumeric(input)) return { data: input, shape: [input.length] };
  if (Array.isArray(input)) return flatten(where, input);
  if (typeof input !== "object" || input === null || !("data" in input) || !("shape" in input)) {
    throw new TensorError(`${where}: expected arrays, or an object with data and shape`);
  }
  const { data, shape } = input;
  const datatype = "datatype" in input ? input.datatype : undefined;
  if (!isNumeric(data) && !Array.isArray(data)) throw new TensorError(`${where}: data is not an array`);
  const sizes = Array.isArray(shape) ? (shape as unknown[]) : undefined;
  if (!sizes || sizes.length > MAX_DIMENSIONS || !sizes.every((size) => Number.isSafeInteger(size) && Number(size) >= 0)) {
    throw new TensorError(`${where}: shape is not an array of sizes`);
  }
  if (datatype !== undefined && !(typeof datatype === "string" && DATATYPES.has(datatype))) {
    throw new TensorError(`${where}: unknown datatype`);
  }
  const wanted = count(sizes as number[]);
  if (data.length !== wanted) {
    throw new TensorError(`${where}: expected ${wanted} values for shape [${sizes}], got ${data.length}`);
  }
  return { data, shape: sizes as number[], datatype: datatype as Datatype | undefined };
}

/** The values of arrays nested to any depth, row-major, and their shape. */
function flatten(where: string, nested: readonly unknown[]): Given {
  const isLevel = (item: unknown) => Array.isArray(item) || (isNumeric(item) && !(item instanceof Uint8Array));
  const shape = [nested.length];
  let level = nested;
  while (level.some(isLevel)) {
    const rows = level as ArrayLike<unknown>[];
    const size = rows[0]?.length;
    if (shape.length === MAX_DIMENSIONS || !level.every((row) => isLevel(row) && (row as []).length === size)) {
      throw new TensorError(`${where}: rows are not of one length`);
    }
    shape.push(size!);
    level = rows.flatMap((row) => Array.from(row));
  }
  return { data: level, shape };
}

function natural(where: string, data: NumericArray | readonly unknown[]): Datatype {
  if (isNumeric(data)) {
    const found = Object.entries(ARRAYS).find(([name, kind]) => data instanceof kind && name !== "BOOL");
    if (found) return found[0] as Datatype;
  } else {
    const kinds = new Set(data.map((value) => typeof value));
    const [kind] = kinds;
    if (kinds.size === 1 && kind === "string") return "BYTES";
    if (kinds.size === 1 && kind === "boolean") return "BOOL";
    if (kinds.size === 1 && kind === "bigint") return "INT64";
    if (kinds.size === 1 && kind === "number") return "FP64";
  }
  throw new TensorError(`${where}: its datatype cannot be told from its values`);
}

function texts(where: string, data: NumericArray | readonly unknown[]): string[] {
  if (isNumeric(data)) throw new TensorError(`${where}: values are not BYTES`);
  return data.map((value, index) => {
    if (typeof value === "string") return value;
    try {
      if (value instanceof Uint8Array) return textOf(value);
    } catch {
      throw new TensorError(`${where}: an element is not UTF-8 (index ${index})`);
    }
    throw new TensorError(`${where}: values are not BYTES (index ${index})`);
  });
}

function converted(
  where: string,
  data: NumericArray | readonly unknown[],
  datatype: Exclude<Datatype, "BYTES">,
): NumericArray {
  const kind = ARRAYS[datatype];
  const typed = isNumeric(data);
  if (typed && data instanceof kind) {
    const wrong = datatype === "BOOL" ? (data as Uint8Array).findIndex((value) => value > 1) : -1;
    if (wrong >= 0) throw new TensorError(`${where}: values are not BOOL (index ${wrong})`);
    return data;
  }
  const floats = data instanceof Float32Array || data instanceof Float64Array;
  if (typed && (datatype === "BOOL" || (floats && !isFloating(datatype)))) {
    throw new TensorError(`${where}: ${data.constructor.name} cannot be sent as ${datatype}`);
  }
  const target = new kind(data.length);
  const set = SETTERS[datatype] ?? (target instanceof BigInt64Array || target instanceof BigUint64Array ? setBig : setNumber);
  for (let index = 0; index < data.length; index++) {
    const value: unknown = data[index];
    const wrong = !typed && typeof value === "number" && !Number.isFinite(value) ? "a value is not finite" : set(target as never, index, value);
    if (wrong) {
      const what = wrong === true ? `a value is out of range for ${datatype}` : wrong;
      throw new TensorError(`${where}: ${what === "type" ? `values are not ${datatype}` : what} (index ${index})`);
    }
  }
  return target;
}

/** Puts a value in its place; says what is wrong with it, true for out of range. */
type Setter = (target: never, index: number, value: unknown) => string | boolean;

const SETTERS: Partial<Record<Datatype, Setter>> = {
  BOOL: (target: Uint8Array, index, value) => {
    if (typeof value !== "boolean") return "type";
    target[index] = Number(value);
    return false;
  },
  FP16: (target: Uint16Array, index, value) => setFloat(target, index, value, toHalf, fromHalf),
  BF16: (target: Uint16Array, index, value) => setFloat(target, index, value, toBfloat, fromBfloat),
  FP32: (target: Float32Array, index, value) => setFloat(target, index, value, Number, Number),
  FP64: (target: Float64Array, index, value) => setFloat(target, index, value, Number, Number),
};

function setFloat(
  target: Uint16Array | Float32Array | Float64Array,
  index: number,
  value: unknown,
  encode: (value: number) => number,
  decode: (stored: number) => number,
): string | boolean {
  if (typeof value !== "number" && typeof value !== "bigint") return "type";
  const number = Number(value);
  target[index] = encode(number);
  return Number.isFinite(number) && !Number.isFinite(decode(target[index]!));
}

function setNumber(target: Uint8Array, index: number, value: unknown): string | boolean {
  if (typeof value !== "number" && typeof value !== "bigint") return "type";
  target[index] = Number(value);
  return target[index] !== Number(value); // wrapped, or cut
}

function setBig(target: BigInt64Array, index: number, value: unknown): string | boolean {
  if (typeof value !== "bigint" && typeof value !== "number") return "type";
  if (typeof value === "number" && !Number.isSafeInteger(value)) return true;
  target[index] = BigInt(value);
  return target[index] !== BigInt(value);
}

/** The numbers of a tensor of FP16 or BF16, which come as their bits; exact. */
export function numbersOf(tensor: Tensor): Float32Array {
  const decode = { FP16: fromHalf, BF16: fromBfloat }[tensor.datatype as string];
  if (!decode) throw new TensorError(`${tensor.datatype} is neither FP16 nor BF16`);
  return Float32Array.from(tensor.data as Uint16Array, decode);
}

const scratch = new DataView(new ArrayBuffer(8));

/** Rounds to IEEE 754 binary16, half to even. What is too large becomes infinite. */
function toHalf(value: number): number {
  if (Number.isNaN(value)) return 0x7e00;
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (size >= 65520) return sign | 0x7c00;
  scratch.setFloat64(0, size);
  const exponent = Math.max(-14, (scratch.getUint16(0) >> 4) - 1023);
  const steps = size / 2 ** (exponent - 10); // exact
  let rounded = Math.round(steps);
  if (rounded - steps === 0.5 && rounded % 2 === 1) rounded--;
  // A carry runs over into the exponent, as it should.
  return sign | ((exponent + 14) * 1024 + rounded);
}

function fromHalf(bits: number): number {
  const exponent = (bits >> 10) & 0x1f;
  const steps = bits & 0x3ff;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 0x1f) return steps ? NaN : sign * Infinity;
  return sign * (exponent ? (steps + 1024) * 2 ** (exponent - 25) : steps * 2 ** -24);
}

/** Rounds to BF16, half to even, by way of FP32 as the server's numpy does. */
function toBfloat(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  // Rounding must not carry a NaN's payload over into its sign.
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) / 0x10000) & 0xffff;
}

function fromBfloat(bits: number): number {
  scratch.setUint32(0, bits * 0x10000);
  return scratch.getFloat32(0);
}

// Messages

/** The content of a request that has and wants all values as bytes; and where those begin. */
export function encodeRequest(inputs: Record<string, Tensor>): { content: Uint8Array; headBytes: number } {
  const parts = Object.entries(inputs).map(([name, { data }]) =>
    Array.isArray(data) ? packTexts(name, data) : new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  );
  const heads = Object.entries(inputs).map(([name, { datatype, shape }], index) => ({
    name,
    datatype,
    shape,
    parameters: { binary_data_size: parts[index]!.length },
  }));
  const head = utf8(JSON.stringify({ parameters: { binary_data_output: true }, inputs: heads }));
  return { content: concatAll([head, ...parts]), headBytes: head.length };
}

function packTexts(name: string, data: string[]): Uint8Array {
  if (data.length > MAX_TEXTS) throw new TensorError(`input "${name}": at most ${MAX_TEXTS} elements of BYTES allowed`);
  const parts = data.flatMap((text, index) => {
    const where = () => `(index ${index})`;
    if (/\p{Surrogate}/u.test(text)) throw new TensorError(`input "${name}": an element is not UTF-8 ${where()}`);
    const bytes = utf8(text);
    if (bytes.length > MAX_TEXT_BYTES) throw new TensorError(`input "${name}": an element is too long ${where()}`);
    const size = new DataView(new ArrayBuffer(4));
    size.setUint32(0, bytes.length, true);
    return [new Uint8Array(size.buffer), bytes];
  });
  return concatAll(parts);
}

/**
 * The outputs of a response by name.
 *
 * @param headBytes of its JSON head.
 * @throws TransportError it is malformed, or the bytes are not what it says.
 */
export function decodeResponse(content: Uint8Array, headBytes: number): Record<string, Tensor> {
  const outputs = member(parsed(content.subarray(0, headBytes)), "outputs");
  if (!Array.isArray(outputs)) throw unusable('expected an object with an array "outputs"');
  const tensors: Record<string, Tensor> = Object.create(null) as Record<string, Tensor>;
  let at = headBytes;
  for (const output of outputs) {
    const { name, datatype, shape, size } = headOf(output);
    if (name in tensors) throw unusable(`output "${name}": given twice`);
    if (size > content.length - at) throw unusable(`output "${name}": expected ${size} bytes, the answer has fewer`);
    const bytes = content.slice(at, (at += size)); // callers own it, and it is aligned
    tensors[name] = { datatype, shape, data: valuesOf(`output "${name}"`, bytes, datatype, count(shape)) };
  }
  if (at !== content.length) throw unusable(`${content.length - at} bytes follow the last tensor`);
  return tensors;
}

const unusable = (what: string) => new TransportError(`the answer is unusable: ${what}`);

function parsed(head: Uint8Array): unknown {
  try {
    return JSON.parse(textOf(head));
  } catch {
    throw unusable("it is not JSON");
  }
}

function headOf(output: unknown) {
  const [name, datatype, shape] = ["name", "datatype", "shape"].map((key) => member(output, key));
  const size = member(member(output, "parameters"), "binary_data_size");
  const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && Number(value) >= 0;
  if (!isObject(output) || typeof name !== "string") throw unusable('a tensor is not an object with a "name"');
  if (typeof datatype !== "string" || !DATATYPES.has(datatype)) throw unusable(`output "${name}": unknown datatype`);
  if (!Array.isArray(shape) || shape.length > MAX_DIMENSIONS || !shape.every(isSize)) {
    throw unusable(`output "${name}": expected an array "shape" of sizes`);
  }
  if (!isSize(size)) throw unusable(`output "${name}": its values did not come as bytes`);
  return { name, datatype: datatype as Datatype, shape: shape as number[], size };
}

function valuesOf(where: string, bytes: Uint8Array<ArrayBuffer>, datatype: Datatype, values: number): NumericArray | string[] {
  if (datatype === "BYTES") return unpackTexts(where, bytes, values);
  const kind = ARRAYS[datatype];
  if (bytes.length !== values * kind.BYTES_PER_ELEMENT) {
    throw unusable(`${where}: ${bytes.length} bytes are not ${values} values of ${datatype}`);
  }
  if (datatype === "BOOL" && bytes.some((value) => value > 1)) throw unusable(`${where}: values are not BOOL`);
  return new kind(bytes.buffer);
}

function unpackTexts(where: string, bytes: Uint8Array<ArrayBuffer>, values: number): string[] {
  // Each takes four bytes at least: nothing is made for those that cannot be there.
  if (values > MAX_TEXTS || values * 4 > bytes.length) throw unusable(`${where}: too many elements`);
  const view = new DataView(bytes.buffer);
  const found: string[] = [];
  let at = 0;
  while (found.length < values) {
    const size = at + 4 <= bytes.length ? view.getUint32(at, true) : Infinity;
    at += 4;
    if (size > bytes.length - at) throw unusable(`${where}: element ${found.length} is cut`);
    try {
      found.push(textOf(bytes.subarray(at, (at += size))));
    } catch {
      throw unusable(`${where}: an element is not UTF-8`);
    }
  }
  if (at !== bytes.length) throw unusable(`${where}: bytes follow its last element`);
  return found;
}

// Rows

/** Some rows of every tensor. */
export function rowsFrom(tensors: Record<string, Tensor>, start: number, end: number): Record<string, Tensor> {
  const cut = ({ datatype, shape, data }: Tensor): Tensor => {
    const width = count(shape.slice(1));
    const part = Array.isArray(data) ? data.slice(start * width, end * width) : data.subarray(start * width, end * width);
    return { datatype, shape: [Math.min(end, shape[0]!) - start, ...shape.slice(1)], data: part };
  };
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, cut(tensor)]));
}

/** Outputs of several requests as one, in their order. */
export function joined(parts: Record<string, Tensor>[]): Record<string, Tensor> {
  const join = (name: string, first: Tensor): Tensor => {
    const tensors = parts.map((part) => part[name]);
    const fits = (tensor: Tensor | undefined): tensor is Tensor =>
      tensor?.datatype === first.datatype && `${tensor.shape.slice(1)}` === `${first.shape.slice(1)}`;
    if (!tensors.every(fits)) throw unusable(`output "${name}": parts of several requests do not fit together`);
    const shape = [tensors.reduce((rows, tensor) => rows + (tensor.shape[0] ?? 0), 0), ...first.shape.slice(1)];
    const data = first.datatype === "BYTES" ? tensors.flatMap(({ data }) => data as string[]) : joinNumbers(tensors, first.datatype);
    return { datatype: first.datatype, shape, data };
  };
  const first = Object.entries(parts[0]!);
  if (parts.some((part) => Object.keys(part).length !== first.length)) {
    throw unusable("parts of several requests have different outputs");
  }
  return Object.fromEntries(first.map(([name, tensor]) => [name, join(name, tensor)]));
}

function joinNumbers(tensors: Tensor[], datatype: Exclude<Datatype, "BYTES">): NumericArray {
  const bytes = tensors.map(({ data }) => {
    const { buffer, byteOffset, byteLength } = data as NumericArray;
    return new Uint8Array(buffer, byteOffset, byteLength);
  });
  return new ARRAYS[datatype](concatAll(bytes).buffer);
}
