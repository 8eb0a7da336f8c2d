"use strict";
// The page of a recording. Its data are what page.encode packs: embedded, or fetched from a server and fetched again
// when they change. From top to bottom: data, space, image points, curves, header, time, and what ties them together.

(() => {
  const {
    BufferAttribute,
    BufferGeometry,
    ColorManagement,
    LineMaterial,
    LineSegments2,
    LineSegmentsGeometry,
    LinearSRGBColorSpace,
    OrbitControls,
    PerspectiveCamera,
    Points,
    Scene,
    ShaderMaterial,
    Vector3,
    WebGLRenderer,
    uPlot,
  } = vendor;

  const BLUE = "#0072B2";
  const ORANGE = "#D55E00";
  const MUTED = "#5F6670";
  const LINE = "#E3E6EA";
  const UNKNOWN = [154, 161, 171]; // colour of a point whose value is not known
  const VIRIDIS = (
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e " +
    "1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
  )
    .split(" ")
    .map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const AXES = ["x", "y", "z"];

  const $ = (id) => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** A number as short as it stays clear. */
  function short(value, digits = 4) {
    if (typeof value !== "number") return String(value);
    if (!Number.isFinite(value)) return String(value).toLowerCase().replace("infinity", "inf");
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 2).replace(/(\.0+)?e\+?/, "e");
    const rounded = Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size || 1)))));
    return rounded.toLocaleString("en", { maximumFractionDigits: 12 });
  }

  function viridis(share) {
    const at = clamp(share, 0, 1) * (VIRIDIS.length - 1);
    const i = Math.min(Math.floor(at), VIRIDIS.length - 2);
    return VIRIDIS[i].map((low, channel) => low + (at - i) * (VIRIDIS[i + 1][channel] - low));
  }

  /** The values below which these shares of the finite values lie; of many values, of 20,000 evenly chosen ones. */
  function percentiles(values, shares, offset = 0, stride = 1) {
    const count = Math.floor((values.length - offset + stride - 1) / stride);
    const every = Math.ceil(count / 20000);
    const chosen = [];
    for (let i = 0; i < count; i += every) {
      const value = values[offset + i * stride];
      if (Number.isFinite(value)) chosen.push(value);
    }
    chosen.sort((a, b) => a - b);
    return shares.map((share) => chosen[Math.round(share * (chosen.length - 1))] ?? NaN);
  }

  /** From where to where the values reach, but for those farther out than 1.5 times the quartiles' distance (Tukey). */
  function bulk(values, offset = 0, stride = 1) {
    const [least, lower, upper, most] = percentiles(values, [0, 0.25, 0.75, 1], offset, stride);
    const beyond = 1.5 * (upper - lower);
    return [Math.max(least, lower - beyond), Math.min(most, upper + beyond)];
  }

  // ---- data ----

  /** What page.encode packed, with every array's number replaced by the array. */
  async function decode(bytes) {
    const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = new Uint8Array(await new Response(unzipped).arrayBuffer());
    const size = new DataView(buffer.buffer).getUint32(0, true);
    const data = JSON.parse(new TextDecoder().decode(buffer.subarray(4, 4 + size)));
    const kinds = { f4: Float32Array, f8: Float64Array, u4: Uint32Array, u1: Uint8Array };
    const arrays = [];
    let at = 4 + size;
    for (const { kind, shape, dropped, base } of data.arrays) {
      const count = shape.reduce((product, n) => product * n, 1);
      const width = Number(kind[1]);
      const raw = new Uint8Array(count * width);
      const earlier = base === null ? null : new Uint8Array(arrays[base].buffer);
      for (let plane = dropped; plane < width; plane++) {
        for (let i = 0, to = plane; i < count; i++, to += width) {
          raw[to] = earlier ? buffer[at++] ^ earlier[to] : buffer[at++];
        }
      }
      arrays.push(new kinds[kind](raw.buffer));
    }
    const take = (record, names) => {
      for (const name of names) record[name] = record[name] === null ? null : arrays[record[name]];
    };
    take(data.metrics, Object.keys(data.metrics));
    for (const stage of data.stages) {
      take(stage, ["colors", "views", "edges", "truth", "cameras_truth", "points2d_truth"]);
    }
    for (const frame of data.frames) take(frame, ["points", "error", "cameras", "K", "points2d"]);
    delete data.arrays;
    return data;
  }

  /** Where the cameras (V,3,4) are, (V,3): -R' t. */
  function centres(cameras) {
    const out = new Float32Array(cameras.length / 4);
    for (let v = 0; v < cameras.length / 12; v++) {
      const c = 12 * v;
      for (let j = 0; j < 3; j++) {
        out[3 * v + j] = -(
          cameras[c + j] * cameras[c + 3] +
          cameras[c + 4 + j] * cameras[c + 7] +
          cameras[c + 8 + j] * cameras[c + 11]
        );
      }
    }
    return out;
  }

  /** Eight segments of each camera (V,3,4): from its centre to the image's corners, and around the image. */
  function frusta(cameras, K, depth) {
    const count = cameras.length / 12;
    const out = [];
    const middle = centres(cameras);
    for (let v = 0; v < count; v++) {
      const k = K && K.length > 9 ? 9 * v : 0;
      const c = 12 * v;
      let halves = K ? [K[k + 2] / K[k], K[k + 5] / K[k + 4]] : [0, 0]; // the image ends at twice the principal point
      if (!(halves[0] > 0 && halves[1] > 0)) halves = [0.6, 0.45]; // centred coordinates tell no size
      const deep = depth * Math.min(1, 0.75 / Math.hypot(...halves)); // a wide lens takes no more room
      const corner = (x, y) =>
        [0, 1, 2].map(
          (j) =>
            middle[3 * v + j] +
            deep * (cameras[c + j] * x * halves[0] + cameras[c + 4 + j] * y * halves[1] + cameras[c + 8 + j]),
        );
      const apex = Array.from(middle.subarray(3 * v, 3 * v + 3));
      const around = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)];
      if (![...apex, ...around.flat()].every(Number.isFinite)) continue;
      around.forEach((from, i) => out.push(...apex, ...from, ...from, ...around[(i + 1) % 4]));
    }
    return Float32Array.from(out);
  }

  /** The box of the bulk of points (N,3) as {centre, radius, low, high}; null of no points. */
  function box(points) {
    const low = [];
    const high = [];
    for (const axis of [0, 1, 2]) {
      const [a, b] = bulk(points, axis, 3);
      low.push(a);
      high.push(b);
    }
    if (!Number.isFinite(low[0])) return null;
    const centre = low.map((a, axis) => (a + high[axis]) / 2);
    return { centre, low, high, radius: Math.hypot(...low.map((a, axis) => high[axis] - a)) / 2 };
  }

  /** What is worth computing once of each stage of the data. */
  function studied(data) {
    const measured = data.frames.filter((frame) => frame.error);
    const errors = [];
    for (const { error } of measured) {
      const every = Math.ceil((error.length * measured.length) / 50000);
      for (let i = 0; i < error.length; i += every) if (error[i] > 0) errors.push(error[i]);
    }
    let [low, high] = percentiles(errors, [0.01, 0.99]);
    if (!(low > 0)) [low, high] = [1e-6, 1];
    data.error_range = high > low ? [low, high] : [low / 10, low];

    data.stages.forEach((stage, number) => {
      const frames = data.frames.filter((frame) => frame.stage === number);
      const last = frames.at(-1);
      stage.frames = frames;
      stage.K = last?.K ?? null;
      const framed = [stage.truth, last?.points].find((points) => points?.length) ?? null;
      const eyes = last?.cameras ? centres(last.cameras) : stage.cameras_truth ? centres(stage.cameras_truth) : null;
      stage.box = (framed && box(framed)) ??
        (eyes && box(eyes)) ?? { centre: [0, 0, 0], low: [0, 0, 0], high: [0, 0, 0], radius: 0 };
      stage.eyes = eyes;
      stage.box.radius = stage.box.radius || 1;
      stage.depth = eyes ? frustumDepth(eyes, stage.box) : 0;
      stage.trail = trail(frames);
    });
    return data;
  }

  /** How deep to draw cameras: a tenth as far as the points are, less where they stand close together. */
  function frustumDepth(eyes, { centre, radius }) {
    const count = eyes.length / 3;
    const far = [];
    const near = [];
    const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
    const eye = (v) => eyes.subarray(3 * v, 3 * v + 3);
    const every = Math.ceil(count / 300);
    for (let v = 0; v < count; v += every) {
      far.push(distance(eye(v), centre));
      let closest = Infinity;
      for (let w = 0; w < count; w++) if (w !== v) closest = Math.min(closest, distance(eye(v), eye(w)) || Infinity);
      near.push(closest);
    }
    const [away] = percentiles(far, [0.5]);
    const [apart = Infinity] = percentiles(near, [0.5]);
    const depth = 0.1 * (away > 0 ? away : radius);
    return apart > 0 ? clamp(1.2 * apart, 0.5 * depth, depth) : depth;
  }

  /** Where the cameras went: segments (S,2,3), and how many of them lead up to each frame. */
  function trail(frames) {
    const segments = [];
    const counts = new Map();
    let before = null;
    for (const frame of frames) {
      const now = frame.cameras && centres(frame.cameras);
      if (now && before?.length === now.length) {
        for (let i = 0; i < now.length; i += 3) {
          const ends = [before[i], before[i + 1], before[i + 2], now[i], now[i + 1], now[i + 2]];
          if (ends.every(Number.isFinite)) segments.push(...ends);
        }
      }
      before = now;
      counts.set(frame, segments.length / 6);
    }
    return { segments: Float32Array.from(segments), counts };
  }

  // ---- space ----

  const VERTEX = `
    uniform float size, scale, least, nearer; // nearer: what is drawn at the same place is hidden, or hides
    uniform bool hollow;
    attribute vec3 tint;
    varying vec3 shown;
    varying float pixels;
    void main() {
      vec4 seen = modelViewMatrix * vec4(position, 1.0);
      gl_Position = projectionMatrix * seen;
      float solid = clamp(size * scale / -seen.z, least, 256.0);
      pixels = hollow ? solid * mix(0.9, 1.7, smoothstep(4.0, 7.0, solid)) : solid; // around a point, or below it
      vec4 moved = projectionMatrix * (seen + vec4(0.0, 0.0, nearer * solid * -seen.z / scale, 0.0));
      gl_Position.z = moved.z / moved.w * gl_Position.w;
      gl_PointSize = pixels;
      shown = tint;
    }`;
  const BALL = `
    varying vec3 shown;
    varying float pixels;
    void main() {
      float r = length(2.0 * gl_PointCoord - 1.0), soft = 2.0 / pixels;
      float alpha = pixels < 2.5 ? 1.0 : 1.0 - smoothstep(1.0 - soft, 1.0, r);
      if (alpha < 0.02) discard;
      gl_FragColor = vec4(shown * (1.0 - 0.28 * r * r * smoothstep(4.0, 9.0, pixels)), alpha);
    }`;
  const RING = `
    varying vec3 shown;
    varying float pixels;
    uniform float stroke;
    void main() {
      float r = length(2.0 * gl_PointCoord - 1.0), soft = 2.0 / pixels, inner = 1.0 - 2.0 * stroke / pixels;
      float alpha = smoothstep(inner - soft, inner, r) * (1.0 - smoothstep(1.0 - soft, 1.0, r));
      if (alpha < 0.02) discard;
      gl_FragColor = vec4(shown, 0.85 * alpha);
    }`;

  /** Round points; `set` shows those that are known. */
  class Cloud {
    constructor(fragmentShader, hollow) {
      const uniforms = {
        size: { value: 1 },
        scale: { value: 1 },
        least: { value: 1 },
        stroke: { value: 1 },
        hollow: { value: hollow },
        nearer: { value: hollow ? -1 : 0.5 },
      };
      this.material = new ShaderMaterial({ uniforms, vertexShader: VERTEX, fragmentShader, alphaToCoverage: true });
      this.object = new Points(new BufferGeometry(), this.material);
      this.object.frustumCulled = false;
      this.count = 0;
    }

    /** points (N,3), color(i, out, at) writes the colour of point i. */
    set(points, color) {
      const total = points ? points.length / 3 : 0;
      if (!this.index || this.index.length < total) {
        this.object.geometry.dispose();
        this.object.geometry = new BufferGeometry();
        this.position = new BufferAttribute(new Float32Array(3 * total), 3);
        this.tint = new BufferAttribute(new Uint8Array(3 * total), 3, true);
        this.object.geometry.setAttribute("position", this.position).setAttribute("tint", this.tint);
        this.index = new Uint32Array(total);
      }
      const place = this.position.array;
      const tint = this.tint.array;
      let n = 0;
      for (let i = 0; i < total; i++) {
        const x = points[3 * i];
        const y = points[3 * i + 1];
        const z = points[3 * i + 2];
        if (!Number.isFinite(x + y + z)) continue;
        place[3 * n] = x;
        place[3 * n + 1] = y;
        place[3 * n + 2] = z;
        color(i, tint, 3 * n);
        this.index[n++] = i;
      }
      this.count = n;
      this.total = total;
      this.position.needsUpdate = this.tint.needsUpdate = true;
      this.object.geometry.setDrawRange(0, n);
    }
  }

  /** Line segments of one colour, `width` px wide. */
  class Lines {
    constructor(color, width, opacity = 1) {
      const material = new LineMaterial({ color, linewidth: width, transparent: opacity < 1, opacity });
      material.depthWrite = opacity === 1;
      this.object = new LineSegments2(new LineSegmentsGeometry(), material);
      this.object.frustumCulled = false;
      this.room = 0;
      this.set(new Float32Array());
    }

    /** segments (S,2,3), the first `count` of them. */
    set(segments, count = segments.length / 6) {
      if (segments !== this.segments) {
        if (segments.length > this.room) {
          this.object.geometry.dispose();
          this.object.geometry = new LineSegmentsGeometry();
          this.room = Math.ceil((segments.length / 6) * 1.2) * 6;
          this.object.geometry.setPositions(new Float32Array(this.room));
        }
        if (segments.length) {
          const { data } = this.object.geometry.attributes.instanceStart;
          data.array.set(segments);
          data.needsUpdate = true;
        }
        this.segments = segments;
      }
      this.object.geometry.instanceCount = count;
      this.any = count > 0;
    }
  }

  class Space {
    /** null where the browser has no WebGL 2. */
    static on(canvas) {
      const context = canvas.getContext("webgl2", { antialias: true, powerPreference: "high-performance" });
      return context ? new Space(canvas, context) : null;
    }

    constructor(canvas, context) {
      ColorManagement.enabled = false; // colours are what they are written as
      this.canvas = canvas;
      this.renderer = new WebGLRenderer({ canvas, context });
      this.renderer.outputColorSpace = LinearSRGBColorSpace;
      this.renderer.setClearColor("#ffffff");
      this.camera = new PerspectiveCamera(40, 1, 0.1, 100);
      this.scene = new Scene();
      this.points = new Cloud(BALL, false);
      this.truth = new Cloud(RING, true);
      this.grid = new Lines(LINE, 1);
      this.residuals = new Lines(MUTED, 1, 0.45);
      this.edges = new Lines(BLUE, 1.5);
      this.trails = new Lines(BLUE, 1, 0.4);
      this.camerasTruth = new Lines(ORANGE, 1.25);
      // below the cameras where they coincide
      Object.assign(this.camerasTruth.object.material, { polygonOffset: true, polygonOffsetUnits: 64 });
      this.cameras = new Lines(BLUE, 1.5);
      const order = [
        this.grid,
        this.trails,
        this.residuals,
        this.edges,
        this.camerasTruth,
        this.cameras,
        this.truth,
        this.points,
      ];
      this.scene.add(...order.map((part) => part.object));
      this.pointSize = 1; // in the scene's units
      this.least = 2; // px
      this.magnified = 1; // both of them, as the user wants
      this.reach = 1; // how far from the centre anything is
      this.draws = 0;
      new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
      this.resize();
    }

    resize() {
      const { clientWidth: width, clientHeight: height } = this.canvas.parentElement;
      if (!width || !height) return;
      this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
      this.renderer.setSize(width, height, false);
      this.camera.aspect = width / height;
      this.redraw();
    }

    /** Begin to look: `up` upwards, from where most cameras are, a little aside and from above. */
    start(up, stage) {
      this.up = new Vector3(...up);
      this.camera.up.copy(this.up);
      this.controls = new OrbitControls(this.camera, this.canvas);
      this.controls.enableDamping = !matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.controls.dampingFactor = 0.15;
      this.controls.zoomToCursor = true;
      this.controls.addEventListener("change", () => this.redraw());
      const level = (v) => v.addScaledVector(this.up, -v.dot(this.up));
      const from =
        stage.eyes && box(stage.eyes)
          ? new Vector3(...box(stage.eyes).centre).sub(new Vector3(...stage.box.centre))
          : new Vector3();
      const far = from.length();
      level(from);
      if (from.length() < 0.3 * far || far < 0.3 * stage.box.radius) {
        from.copy(level(new Vector3(0.55, -1, 0)));
        if (from.length() < 0.3) from.copy(level(new Vector3(1, 0.55, 1)));
      }
      this.vantage = from.normalize().applyAxisAngle(this.up, 0.45).addScaledVector(this.up, 0.42).normalize();
      this.camera.position.copy(this.vantage);
    }

    /** Keep the direction of view, and come as close as shows a ball of this centre and radius. */
    fit({ centre, radius }) {
      const direction = this.camera.position.clone().sub(this.controls.target).normalize();
      const half = Math.atan(Math.tan((this.camera.fov * Math.PI) / 360) * Math.min(1, this.camera.aspect));
      this.controls.target.set(...centre);
      this.camera.position.set(...centre).addScaledVector(direction, (1.1 * radius) / Math.sin(half));
      this.controls.update();
      this.redraw();
    }

    /** Squares of a round number of units on the plane below the box; that number. */
    lay({ centre, low, high, radius }) {
      const up = this.up;
      const tops = up.toArray();
      const drop = tops.reduce((sum, u, axis) => sum + (Math.abs(u) * (high[axis] - low[axis])) / 2, 0);
      const exponent = 10 ** Math.floor(Math.log10(radius / 2));
      const lead = radius / 2 / exponent;
      const unit = (lead >= 5 ? 5 : lead >= 2 ? 2 : 1) * exponent;
      const squares = Math.ceil((1.4 * radius) / unit);
      const right = Math.abs(tops[0]) < 0.8 ? new Vector3(1, 0, 0) : new Vector3(0, 1, 0);
      right.addScaledVector(up, -right.dot(up)).normalize();
      const ahead = new Vector3().crossVectors(up, right);
      const middle = new Vector3(...centre).addScaledVector(up, -drop - 0.06 * radius);
      const segments = [];
      const corner = (a, b) =>
        middle
          .clone()
          .addScaledVector(right, a * unit)
          .addScaledVector(ahead, b * unit)
          .toArray();
      for (let i = -squares; i <= squares; i++) {
        segments.push(...corner(i, -squares), ...corner(i, squares), ...corner(-squares, i), ...corner(squares, i));
      }
      this.grid.set(Float32Array.from(segments));
      return unit;
    }

    redraw() {
      this.queued ??= requestAnimationFrame(() => {
        this.queued = undefined;
        this.draw();
      });
    }

    draw() {
      if (!this.controls) return;
      this.controls.update();
      const distance = this.camera.position.distanceTo(this.controls.target);
      this.camera.near = 0.01 * distance; // what lies closer is in the way
      this.camera.far = 2 * (distance + this.controls.target.length() + this.reach);
      this.camera.updateProjectionMatrix();
      const ratio = this.renderer.getPixelRatio();
      const height = this.renderer.domElement.height;
      for (const {
        material: { uniforms },
      } of [this.points, this.truth]) {
        uniforms.size.value = this.pointSize * this.magnified;
        uniforms.scale.value = height / (2 * Math.tan((this.camera.fov * Math.PI) / 360));
        uniforms.least.value = Math.max(1, this.least * ratio * Math.min(1, this.magnified));
        uniforms.stroke.value = 1.4 * ratio;
      }
      this.renderer.render(this.scene, this.camera);
      this.draws++;
      this.afterDraw();
    }

    /** Where a point is on the canvas, px; null behind the camera. */
    onCanvas(x, y, z) {
      const at = new Vector3(x, y, z).project(this.camera);
      if (Math.abs(at.z) > 1) return null;
      return [((at.x + 1) / 2) * this.canvas.clientWidth, ((1 - at.y) / 2) * this.canvas.clientHeight];
    }

    /** The number of the point drawn at (x, y) px of the canvas, the closest to the eye within 9 px; -1 for none. */
    pick(x, y) {
      const m = this.camera.projectionMatrix.clone().multiply(this.camera.matrixWorldInverse).elements;
      const { clientWidth: width, clientHeight: height } = this.canvas;
      const place = this.points.position?.array;
      let found = -1;
      let best = Infinity;
      for (let n = 0; n < this.points.count; n++) {
        const a = place[3 * n];
        const b = place[3 * n + 1];
        const c = place[3 * n + 2];
        const w = m[3] * a + m[7] * b + m[11] * c + m[15];
        if (w <= this.camera.near) continue;
        const dx = (((m[0] * a + m[4] * b + m[8] * c + m[12]) / w + 1) * width) / 2 - x;
        const dy = ((1 - (m[1] * a + m[5] * b + m[9] * c + m[13]) / w) * height) / 2 - y;
        const off = Math.hypot(dx, dy);
        if (off < 9 && w * (1 + off / 9) < best) [found, best] = [n, w * (1 + off / 9)];
      }
      return found;
    }
  }

  // ---- colours of points ----

  /** How to colour the points of a frame: {name, color(i, out, at), low, high, log} with low ... high for the bar. */
  const COLORINGS = {
    image: {
      label: "image",
      of: (data, stage, frame, count) =>
        stage.colors?.length === 3 * count && {
          color: (i, out, at) => {
            for (let c = 0; c < 3; c++) out[at + c] = stage.colors[3 * i + c];
          },
        },
    },
    position: {
      label: "position",
      of: (data, stage, frame, count) => {
        stage.positions ??= new Map();
        if (!stage.positions.has(count)) stage.positions.set(count, byPosition(stage, count));
        return stage.positions.get(count);
      },
    },
    error: {
      label: "error",
      of: (data, stage, frame) => {
        if (!frame.error) return null;
        const [low, high] = data.error_range;
        const unit = frame.error_unit || "scene units";
        const name = frame.error_unit ? `reprojection error (${unit}, log)` : `distance to truth (${unit}, log)`;
        return scale(name, low, high, (i) => frame.error[i], true);
      },
    },
    views: {
      label: "visibility",
      of: (data, stage, frame, count) => {
        if (stage.views?.length !== count) return null;
        stage.views_range ??= percentiles(stage.views, [0, 1]);
        return scale("views that see the point", ...stage.views_range, (i) => stage.views[i]);
      },
    },
  };

  /** A point keeps its colour while it moves: that of where it belongs, or ends, along the axis of most spread. */
  function byPosition(stage, count) {
    const known = stage.truth?.length === 3 * count;
    const place = known ? stage.truth : stage.frames.findLast((frame) => frame.points.length === 3 * count).points;
    const ranges = [0, 1, 2].map((axis) => bulk(place, axis, 3));
    const widths = ranges.map(([low, high]) => high - low);
    const axis = widths.indexOf(Math.max(...widths));
    if (axis < 0) return scale("position", 0, 1, () => NaN);
    const [low, high] = ranges[axis];
    const when = known ? " of the truth" : stage.frames.length > 1 ? " at the end" : "";
    const made = scale(`${AXES[axis]}${when} (scene units)`, low, high, (i) => place[3 * i + axis]);
    return { ...made, offset: axis };
  }

  function scale(name, low, high, value, log = false) {
    const table = new Uint8Array(3 * 256);
    for (let i = 0; i < 256; i++) table.set(viridis(i / 255).map(Math.round), 3 * i);
    const from = log ? Math.log(low) : low;
    const width = (log ? Math.log(high) : high) - from || 1;
    const color = (i, out, at) => {
      const raw = value(i);
      const share = log ? (raw > 0 ? (Math.log(raw) - from) / width : raw === 0 ? 0 : NaN) : (raw - from) / width;
      if (Number.isNaN(share)) {
        out[at] = UNKNOWN[0];
        out[at + 1] = UNKNOWN[1];
        out[at + 2] = UNKNOWN[2];
        return;
      }
      const row = 3 * Math.round(255 * clamp(share, 0, 1));
      out[at] = table[row];
      out[at + 1] = table[row + 1];
      out[at + 2] = table[row + 2];
    };
    return { name, low, high, log, color };
  }

  // ---- image points ----

  function drawImage(canvas, data, frame) {
    const stage = data.stages[frame.stage];
    const current = frame.points2d ?? [];
    const truth = stage.points2d_truth ?? [];
    const frames = stage.frames.filter((other) => other.points2d?.length === current.length);
    stage.image_box ??= imageBox(stage, frames, truth);
    const { low, high } = stage.image_box;
    const margin = { left: 44, right: 8, top: 8, bottom: 24 };
    const width = canvas.parentElement.clientWidth;
    const most = 0.6 * window.innerHeight;
    const zoom = Math.min((width - margin.left - margin.right) / (high[0] - low[0]), most / (high[1] - low[1]));
    const height = Math.round(zoom * (high[1] - low[1]) + margin.top + margin.bottom);
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const right = margin.left + zoom * (high[0] - low[0]);
    const bottom = height - margin.bottom;
    const u = (x) => margin.left + zoom * (x - low[0]);
    const v = (y) => margin.top + zoom * (y - low[1]);

    pen.font = "11px system-ui, sans-serif";
    pen.lineWidth = 1;
    for (const axis of [0, 1]) {
      for (const tick of roundNumbers(low[axis], high[axis], axis ? 5 : 6)) {
        const at = Math.round(axis ? v(tick) : u(tick)) + 0.5;
        pen.strokeStyle = LINE;
        pen.fillStyle = MUTED;
        pen.beginPath();
        if (axis) {
          pen.moveTo(margin.left, at);
          pen.lineTo(right, at);
        } else {
          pen.moveTo(at, margin.top);
          pen.lineTo(at, bottom);
        }
        pen.stroke();
        pen.textAlign = axis ? "right" : "center";
        pen.textBaseline = axis ? "middle" : "top";
        pen.fillText(short(tick), axis ? margin.left - 6 : at, axis ? at : bottom + 6);
      }
    }
    if (stage.image_size) {
      pen.strokeStyle = "#AEB5BE";
      const [w, h] = stage.image_size; // (0, 0) is the centre of the top-left pixel
      pen.strokeRect(u(-0.5), v(-0.5), zoom * w, zoom * h);
    }
    pen.save();
    pen.beginPath();
    pen.rect(margin.left, margin.top, right - margin.left, bottom - margin.top);
    pen.clip();
    const line = (a, i, b, j) => {
      pen.moveTo(u(a[2 * i]), v(a[2 * i + 1]));
      pen.lineTo(u(b[2 * j]), v(b[2 * j + 1]));
    };
    const count = current.length / 2;
    const many = count > 200;
    const past = frames.slice(0, frames.indexOf(frame) + 1);
    pen.globalAlpha = many ? 0.35 : 0.8;
    pen.lineWidth = many ? 0.75 : 1.25;
    for (let k = 1; k < past.length; k++) {
      pen.strokeStyle = `rgb(${viridis(k / Math.max(frames.length - 1, 1)).map(Math.round)})`;
      pen.beginPath();
      for (let i = 0; i < count; i++) line(past[k - 1].points2d, i, past[k].points2d, i);
      pen.stroke();
    }
    pen.globalAlpha = 1;
    if (stage.edges && stage.edges.every((end) => end < count)) {
      pen.strokeStyle = BLUE;
      pen.lineWidth = 1;
      pen.beginPath();
      for (let e = 0; e < stage.edges.length; e += 2) line(current, stage.edges[e], current, stage.edges[e + 1]);
      pen.stroke();
    }
    if (truth.length === current.length) {
      pen.strokeStyle = MUTED;
      pen.globalAlpha = 0.6;
      pen.beginPath();
      for (let i = 0; i < count; i++) line(current, i, truth, i);
      pen.stroke();
      pen.globalAlpha = 1;
    }
    const arm = clamp(40 / Math.sqrt(truth.length / 2), 3, 8);
    pen.strokeStyle = ORANGE;
    pen.lineWidth = many ? 1 : 2;
    pen.beginPath();
    for (let i = 0; i < truth.length; i += 2) {
      const x = u(truth[i]);
      const y = v(truth[i + 1]);
      pen.moveTo(x - arm, y);
      pen.lineTo(x + arm, y);
      pen.moveTo(x, y - arm);
      pen.lineTo(x, y + arm);
    }
    pen.stroke();
    pen.fillStyle = BLUE;
    pen.strokeStyle = "#fff";
    pen.lineWidth = 1;
    for (let i = 0; i < count; i++) {
      pen.beginPath();
      pen.arc(u(current[2 * i]), v(current[2 * i + 1]), many ? 1.75 : 3.5, 0, 2 * Math.PI);
      pen.fill();
      if (!many) pen.stroke();
    }
    pen.restore();
  }

  /** What the panel shows: the image, and the points where they end and belong; else all that they cross. */
  function imageBox(stage, frames, truth) {
    const ends = [
      truth,
      frames.at(-1)?.points2d ?? [],
      ...(stage.image_size ? [] : frames.map((frame) => frame.points2d)),
    ];
    const all = ends.flatMap((points) => Array.from(points));
    const low = [];
    const high = [];
    for (const axis of [0, 1]) {
      let [a, b] = percentiles(all, [0, 1], axis, 2);
      if (stage.image_size) [a, b] = [Math.min(-0.5, a || 0), Math.max(stage.image_size[axis] - 0.5, b || 0)];
      const pad = stage.image_size ? 0.02 * (b - a) : 0.06 * (b - a) || 1;
      low.push(a - pad);
      high.push(b + pad);
    }
    return { low, high };
  }

  /** Round numbers between low and high, at most about `count`. */
  function roundNumbers(low, high, count) {
    const raw = (high - low) / count;
    const exponent = 10 ** Math.floor(Math.log10(raw));
    const lead = raw / exponent;
    const step = (lead > 5 ? 10 : lead > 2 ? 5 : lead > 1 ? 2 : 1) * exponent;
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step || 0);
    return found;
  }

  // ---- curves ----

  const INTRINSICS = /^(f|fx|fy|cx|cy|skew|focal\w*|[kpd]\d)$/;

  /** The columns in the order of the charts: loss, intrinsics, the rest. */
  function columns(metrics) {
    const rank = (name) => (/^loss/.test(name) ? 0 : INTRINSICS.test(name) ? 1 : 2);
    return Object.keys(metrics)
      .filter((name) => name !== "step")
      .sort((a, b) => rank(a) - rank(b));
  }

  const chartHeight = () => (document.body.classList.contains("flat") ? 200 : 124);

  class Chart {
    constructor(name, onStep) {
      this.name = name;
      this.onStep = onStep;
      this.target = element("span", { class: "target" });
      this.value = element("span", { class: "value" });
      this.holder = element("div", { class: "plot" });
      const head = element("div", { class: "chart-head" }, element("span", {}, name), this.value, this.target);
      this.element = element("section", { class: "chart", "aria-label": `Curve of ${name}` }, head, this.holder);
      this.line = element("div", { class: "now-line", hidden: "" });
      this.dot = element("div", { class: "now-dot", hidden: "" });
      new ResizeObserver(() => {
        if (this.plot && this.holder.clientWidth) {
          this.plot.setSize({ width: this.holder.clientWidth, height: chartHeight() });
          this.mark(this.step);
        }
      }).observe(this.holder);
    }

    /** steps (T,), values (T,); xs: the iterations from first to last; target: where the column should end, or NaN. */
    update(steps, values, xs, target) {
      const finite = values.filter(Number.isFinite);
      const positive = finite.filter((value) => value > 0);
      const least = positive.reduce((a, b) => Math.min(a, b), Infinity);
      const most = positive.reduce((a, b) => Math.max(a, b), 0);
      const log = finite.every((value) => value >= 0) && most > 100 * least;
      Object.assign(this, { steps, values, xs, log, goal: log && !(target > 0) ? NaN : target });
      this.target.textContent = Number.isFinite(target) ? `target ${short(target)}` : "";
      const shown = Array.from(values, (value) => (Number.isFinite(value) && !(log && value <= 0) ? value : null));
      if (this.plot && this.wasLog === log) {
        this.plot.setData([steps, shown]);
        return;
      }
      this.wasLog = log;
      this.plot?.destroy();
      this.plot = new uPlot(this.options(log), [steps, shown], this.holder);
      this.plot.over.append(this.line, this.dot);
      const seek = (event) => {
        if (!(event.buttons & 1)) return;
        const left = event.clientX - this.plot.over.getBoundingClientRect().left;
        this.onStep(this.plot.posToVal(left, "x"));
      };
      this.plot.over.addEventListener("pointerdown", (event) => {
        this.plot.over.setPointerCapture(event.pointerId);
        seek(event);
      });
      this.plot.over.addEventListener("pointermove", seek);
    }

    options(log) {
      const font = "11px system-ui, sans-serif";
      const axis = { font, stroke: MUTED, ticks: { stroke: LINE, size: 4 }, grid: { stroke: LINE, width: 1 } };
      return {
        width: this.holder.clientWidth || 360,
        height: chartHeight(),
        legend: { show: false },
        padding: [8, 8, 0, 0],
        cursor: {
          y: false,
          drag: { x: false, y: false },
          sync: { key: "iteration" },
          points: { size: 6, fill: BLUE, width: 0 },
        },
        scales: {
          x: { time: false, range: () => (this.xs[0] < this.xs[1] ? this.xs : [this.xs[0] - 1, this.xs[0] + 1]) },
          y: { distr: log ? 3 : 1, range: (_, low, high) => this.range(low, high) },
        },
        axes: [
          {
            ...axis,
            size: 26,
            gap: 3,
            incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7],
          },
          {
            ...axis,
            gap: 4,
            space: 26,
            size: (_, labels) => 14 + 6.4 * Math.max(6, ...(labels ?? []).map((label) => label.length)),
            ...(log && { splits: (_, __, low, high) => decades(low, high), filter: (_, splits) => splits }),
            values: (_, splits, __, ___, step) => splits.map((value) => tickLabel(value, step, log)),
          },
        ],
        series: [
          {},
          { stroke: BLUE, width: 1.6, spanGaps: false, points: { show: this.values.length < 40, size: 4, fill: BLUE } },
        ],
        hooks: {
          draw: [(plot) => this.drawTarget(plot)],
          setCursor: [(plot) => this.say(plot.cursor.idx)],
        },
      };
    }

    range(low, high) {
      const ends = [low, high, this.goal].filter(Number.isFinite);
      if (!ends.length) return [0, 1];
      const [a, b] = [Math.min(...ends), Math.max(...ends)];
      if (this.log) return [a / 1.6, b * 1.6];
      const pad = 0.08 * (b - a) || 0.05 * Math.abs(a) || 1;
      return [a - pad, b + pad];
    }

    drawTarget(plot) {
      if (!Number.isFinite(this.goal)) return;
      const { ctx, bbox } = plot;
      const y = plot.valToPos(this.goal, "y", true);
      ctx.save();
      ctx.strokeStyle = ORANGE;
      ctx.lineWidth = 1.5 * devicePixelRatio;
      ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.restore();
    }

    /** The row of the last iteration up to `step`; the first where there is none. */
    row(step) {
      let low = 0;
      let high = this.steps.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (this.steps[middle] <= step) low = middle;
        else high = middle - 1;
      }
      return low;
    }

    mark(step) {
      this.step = step;
      const known = step !== undefined && this.steps.length > 0;
      this.line.hidden = this.dot.hidden = !known;
      this.say(null);
      if (!known) return;
      const row = this.row(step);
      const value = this.values[row];
      this.line.style.left = `${this.plot.valToPos(step, "x")}px`;
      this.dot.hidden = !Number.isFinite(value) || (this.log && value <= 0);
      if (this.dot.hidden) return;
      this.dot.style.left = `${this.plot.valToPos(this.steps[row], "x")}px`;
      this.dot.style.top = `${this.plot.valToPos(value, "y")}px`;
    }

    /** Write the value of this row; without one, that of now. */
    say(row) {
      const hovered = row !== null && row !== undefined;
      const shown = hovered ? row : this.step === undefined ? this.steps.length - 1 : this.row(this.step);
      const value = this.values[shown];
      this.value.textContent =
        value === undefined ? "" : `${hovered ? `at ${short(this.steps[shown])}: ` : ""}${short(value)}`;
      this.value.classList.toggle("past", hovered);
    }
  }

  /** Powers of ten between low and high, at most five. */
  function decades(low, high) {
    const first = Math.ceil(Math.log10(low));
    const last = Math.floor(Math.log10(high));
    const every = Math.ceil((last - first + 1) / 5);
    const found = [];
    for (let power = first; power <= last; power += every) found.push(Number(`1e${power}`));
    return found;
  }

  function tickLabel(value, step, log) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (log)
      return size >= 1e-3 && size < 1e5
        ? String(Number(value.toPrecision(6)))
        : value.toExponential(0).replace("e+", "e");
    const order = Math.floor(Math.log10(step) + 1e-9);
    const exponent = Math.floor(Math.log10(size));
    if (size !== 0 && (size < 1e-3 || size >= 1e9))
      return value.toExponential(Math.max(0, exponent - order)).replace("e+", "e");
    return value.toFixed(clamp(-order, 0, 20));
  }

  // ---- header ----

  function describe(data) {
    const { summary } = data;
    const done = Object.keys(summary).length > 0;
    document.title = $("title").textContent = data.title;
    const reached = Math.max(data.metrics.step?.at(-1) ?? -1, data.frames.at(-1)?.step ?? -1);
    const [words, mood] = !data.is_run
      ? ["File", ""]
      : !done
        ? [reached < 0 ? "Unfinished" : `Unfinished, at iteration ${short(reached)}`, ""]
        : summary.converged
          ? ["Converged", "good"]
          : ["Not converged", "bad"];
    $("state").textContent = words;
    $("state").className = mood;

    const reference = { ...summary.reference };
    const facts = [];
    const add = (name, value) => {
      const text = reference[name];
      delete reference[name];
      facts.push([name, value, text]);
    };
    for (const name of ["iterations", "seconds", "loss"]) if (summary[name] !== undefined) add(name, summary[name]);
    for (const [name, value] of Object.entries(summary.errors ?? {})) add(name, value);
    for (const name of Object.keys(reference)) add(name);
    $("facts").replaceChildren(
      ...facts.map(([name, value, text]) => {
        const unit =
          name.endsWith("_px") || name.endsWith(" px")
            ? " px"
            : name.endsWith("_deg")
              ? "°"
              : name === "seconds"
                ? " s"
                : "";
        const label = name === "seconds" ? "time" : name.replace(/_(px|deg)$/, "").replaceAll("_", " ");
        const shown = element("dd");
        if (value !== undefined) shown.append(short(value) + unit);
        if (text !== undefined) shown.append(element("span", { class: "reference" }, `reference ${short(text)}`));
        return element("div", {}, element("dt", {}, label), shown);
      }),
    );
    $("note").hidden = !summary.note;
    $("note").lastElementChild.textContent = summary.note ?? "";
  }

  // ---- state, and what ties everything together ----

  const state = { data: null, frame: 0, color: null, playing: null, stage: -1, entered: -1 };
  const charts = new Map();
  const space = Space.on($("canvas"));

  const TOGGLES = [
    // name, label, mark, which stages have it, whether it is on at first
    ["truth", "Truth", ["dot", ORANGE], (stage) => stage.truth || stage.cameras_truth, () => true],
    [
      "residuals",
      "Residuals",
      ["", MUTED],
      (stage) => stage.truth,
      (data) => data.stages.every((stage) => !(stage.truth?.length > 6000)),
    ],
    ["cameras", "Cameras", ["", BLUE], (stage) => stage.depth > 0, () => true],
    [
      "trails",
      "Camera trails",
      ["", "#8FBCDD"],
      (stage) => stage.trail.segments.length,
      (data) => data.frames.every((frame) => !(frame.cameras?.length > 12 * 20)),
    ],
    ["edges", "Edges", ["", BLUE], (stage) => stage.edges, () => true],
    ["grid", "Grid", ["", "#C9CED5"], () => true, () => true],
  ];
  const isOn = (name) => $("toggles").querySelector(`[name=${name}]`)?.checked ?? false;

  /** Show these data: the first, or newer ones of the same run. */
  function load(data) {
    const first = state.data === null;
    const old = state.data?.frames[state.frame];
    const following = first || !old || state.frame === state.data.frames.length - 1;
    state.data = studied(data);
    state.stage = -1;
    describe(data);

    const spatial = data.frames.some((frame) => frame.points.length || frame.cameras);
    const flat = data.frames.some((frame) => frame.points2d);
    const curved = columns(data.metrics).length > 0;
    document.body.classList.toggle("flat", !spatial);
    document.body.classList.toggle("bare", spatial && !flat && !curved);
    $("no-space").hidden = spatial && space !== null;
    $("no-space").textContent = whyNoSpace(data, spatial, flat);
    for (const part of ["canvas", "tools", "views", "counts", "axes"]) $(part).hidden = !spatial || !space;
    $("image").hidden = !flat;
    $("timeline").hidden = data.frames.length < 2;
    $("slider").max = data.frames.length - 1;
    if (spatial && space) offer(data);
    plot(data);
    offerStages(data);
    offerSpeeds(data);
    if (data.frames.length) {
      const same = following ? -1 : data.frames.findIndex((frame) => frame.step === old.step);
      show(same < 0 ? data.frames.length - 1 : same);
    }
  }

  function whyNoSpace(data, spatial, flat) {
    if (spatial) {
      return (
        "This browser gives no WebGL 2, which the view in space needs: turn on hardware acceleration " +
        "in its settings, or open the page in another browser. Everything else works."
      );
    }
    if (flat) return "";
    const finished = Object.keys(data.summary).length > 0;
    return `Nothing that moves in space ${finished ? "was recorded: the curves tell it all" : "is recorded yet"}.`;
  }

  /** The colours and switches for which there is something; what was chosen stays. */
  function offer(data) {
    const possible = Object.keys(COLORINGS).filter((name) =>
      data.frames.some(
        (frame) =>
          frame.points.length && COLORINGS[name].of(data, data.stages[frame.stage], frame, frame.points.length / 3),
      ),
    );
    if (!possible.includes(state.color)) state.color = possible[0] ?? "position";
    $("color").replaceChildren(...possible.map((name) => element("option", { value: name }, COLORINGS[name].label)));
    $("color").value = state.color;
    $("color-row").hidden = $("size-row").hidden = !possible.length;
    const was = new Map([...$("toggles").querySelectorAll("input")].map((input) => [input.name, input.checked]));
    $("toggles").replaceChildren(
      ...TOGGLES.filter(([, , , has]) => data.stages.some(has)).map(([name, label, [mark, color], , on]) => {
        const input = element("input", { type: "checkbox", name });
        input.checked = was.get(name) ?? on(data);
        return element("label", {}, input, element("i", { class: mark, style: `border-color: ${color}` }), label);
      }),
    );
  }

  function offerStages(data) {
    $("stages").hidden = data.stages.length < 2;
    $("stage-choice").replaceChildren(
      ...data.stages.map((stage, i) => {
        const option = element("option", { value: i }, stage.name || `${i + 1}`);
        option.disabled = !stage.frames.length;
        return option;
      }),
    );
  }

  function offerSpeeds(data) {
    if ($("speed").childElementCount) return;
    const speeds = [1, 2, 5, 10, 20, 40];
    const wanted = data.frames.length / 8; // 8 seconds
    $("speed").append(...speeds.map((speed) => element("option", { value: speed }, `${plural(speed, "frame")}/s`)));
    $("speed").value = speeds.find((speed) => speed >= wanted) ?? 40;
  }

  function plot(data) {
    const names = columns(data.metrics);
    for (const [name, chart] of charts)
      if (!names.includes(name)) {
        chart.element.remove();
        charts.delete(name);
      }
    for (const name of names) {
      if (charts.has(name)) continue;
      const chart = new Chart(name, (step) => seek(step));
      charts.set(name, chart);
      $("curves").append(chart.element);
    }
    if (!data.frames.length) target(data.stages.at(-1));
  }

  /** Give the curves their data, and the targets of a stage. */
  function target(stage) {
    const { metrics, frames } = state.data;
    const steps = metrics.step ?? new Float64Array();
    const ends = [steps[0], steps.at(-1), frames[0]?.step, frames.at(-1)?.step].filter(Number.isFinite);
    const xs = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
    for (const [name, chart] of charts) {
      chart.update(steps, metrics[name], xs, Number(stage?.targets[name] ?? NaN));
      chart.mark(undefined);
    }
  }

  /** Show the frame closest to this iteration. */
  function seek(step) {
    const { frames } = state.data;
    if (!frames.length) return;
    pause();
    show(
      frames.reduce(
        (best, frame, i) => (Math.abs(frame.step - step) < Math.abs(frames[best].step - step) ? i : best),
        0,
      ),
    );
  }

  /** Show frame number i. */
  function show(i) {
    const { data } = state;
    const count = data.frames.length;
    state.frame = clamp(i, 0, count - 1);
    const frame = data.frames[state.frame];
    const stage = data.stages[frame.stage];
    if (state.stage !== frame.stage) enter(frame.stage);
    $("slider").value = state.frame;
    $("slider").setAttribute("aria-valuetext", `iteration ${frame.step}`);
    $("step").textContent = `Iteration ${frame.step.toLocaleString("en")}`;
    $("stage-name").textContent = data.stages.length > 1 && stage.name ? `of ${stage.name}` : "";
    $("stage-choice").value = frame.stage;
    const kept = count < data.frames_recorded ? ` (${count} of ${data.frames_recorded} frames kept)` : "";
    $("kept").textContent = `frame ${state.frame + 1} of ${count}${kept}`;
    if (space && (frame.points.length || frame.cameras)) fill(frame, stage);
    if (!$("image").hidden) drawImage($("image-canvas"), data, frame);
    for (const chart of charts.values()) chart.mark(frame.step);
  }

  /** Put up all that stays for as long as this stage does. */
  function enter(number) {
    const { data } = state;
    const stage = data.stages[number];
    state.stage = number;
    target(stage);
    $("image-legend").replaceChildren(...legend(stage));
    if (!space) return;
    const similar =
      state.framed &&
      Math.hypot(...stage.box.centre.map((c, axis) => c - state.framed.centre[axis])) < 0.5 * state.framed.radius &&
      stage.box.radius < 2 * state.framed.radius &&
      stage.box.radius > 0.5 * state.framed.radius;
    if (!space.controls) space.start(data.up, stage);
    const points = (stage.truth ?? stage.frames.at(-1)?.points ?? []).length / 3;
    space.pointSize = stage.box.radius * Math.min(0.045, 0.7 / Math.sqrt(points || 1));
    space.least = clamp(60 / Math.sqrt(points || 1), 2, 5);
    state.unit = space.lay(stage.box);
    const orange = [0xd5, 0x5e, 0x00];
    space.truth.set(stage.truth, (_, out, at) => out.set(orange, at));
    space.camerasTruth.set(
      stage.cameras_truth ? frusta(stage.cameras_truth, stage.K, stage.depth) : new Float32Array(),
    );
    space.reach = reach(stage);
    if (number !== state.entered && !similar) {
      // newer data of the same stage do not take the view away
      state.framed = stage.box;
      space.fit(stage.box);
    }
    state.entered = number;
  }

  /** How far from the centre anything of the stage is. */
  function reach(stage) {
    let most = 0;
    const places = stage.frames.flatMap((frame) => [frame.points, frame.cameras && centres(frame.cameras)]);
    for (const values of [stage.truth, stage.cameras_truth && centres(stage.cameras_truth), ...new Set(places)]) {
      for (const value of values ?? []) if (Math.abs(value) > most && Number.isFinite(value)) most = Math.abs(value);
    }
    return 2 * most + 2 * stage.box.radius;
  }

  function fill(frame, stage) {
    const { data } = state;
    const { points } = frame;
    const count = points.length / 3;
    const none = new Float32Array();
    const coloring =
      COLORINGS[state.color]?.of(data, stage, frame, count) || COLORINGS.position.of(data, stage, frame, count);
    space.points.set(points, coloring.color);
    showBar(coloring, stage, count);

    const joined = (from, to, pairs) => {
      const out = new Float32Array(3 * pairs.length);
      let n = 0;
      for (let i = 0; i < pairs.length; i += 2) {
        const a = 3 * pairs[i];
        const b = 3 * pairs[i + 1];
        const sum = from[a] + from[a + 1] + from[a + 2] + to[b] + to[b + 1] + to[b + 2];
        if (!Number.isFinite(sum)) continue;
        for (let axis = 0; axis < 3; axis++) {
          out[n + axis] = from[a + axis];
          out[n + 3 + axis] = to[b + axis];
        }
        n += 6;
      }
      return out.subarray(0, n);
    };
    const matched = stage.truth?.length === points.length && isOn("residuals");
    space.residuals.set(
      matched
        ? joined(
            points,
            stage.truth,
            Uint32Array.from({ length: 2 * count }, (_, i) => i >> 1),
          )
        : none,
    );
    const edges = stage.edges?.every((end) => end < count) && count ? stage.edges : none;
    space.edges.set(joined(points, points, edges));
    space.cameras.set(frame.cameras ? frusta(frame.cameras, frame.K, stage.depth) : none);
    space.trails.set(stage.trail.segments, stage.trail.counts.get(frame));
    for (const [part, on] of [
      ["truth", isOn("truth")],
      ["residuals", isOn("residuals")],
      ["edges", isOn("edges")],
      ["cameras", isOn("cameras")],
      ["camerasTruth", isOn("cameras") && isOn("truth")],
      ["trails", isOn("trails")],
      ["grid", isOn("grid")],
    ])
      space[part].object.visible = on && (space[part].any ?? space[part].count > 0);

    const words = [];
    const cameras = frame.cameras ? frame.cameras.length / 12 : 0;
    if (count)
      words.push(
        space.points.count === count
          ? plural(count, "point")
          : `${short(space.points.count)} of ${plural(count, "point")} known`,
      );
    if (stage.stride > 1) words.push(`one of ${stage.stride} shown`);
    if (cameras) words.push(plural(cameras, "camera"));
    if (isOn("grid")) words.push(`grid ${short(state.unit)}`);
    $("counts").textContent = words.join(" · ");
    hover(null);
    space.redraw();
  }

  const plural = (count, word) => `${short(count)} ${word}${count === 1 ? "" : "s"}`;

  function showBar({ name, low, high, log, offset }, stage, count) {
    $("bar").hidden = !name || !count;
    if ($("bar").hidden) return;
    const shift = offset === undefined ? 0 : stage.centre[offset];
    const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
    const unit = !log && high > low ? 10 ** (Math.floor(Math.log10(high - low)) - 2) : 0;
    const rounded = (value) => (unit ? Math.round(value / unit) * unit || 0 : value);
    $("bar-name").textContent = name;
    const stops = VIRIDIS.map((color) => `rgb(${color})`);
    $("bar-colors").style.background = `linear-gradient(to right, ${stops})`;
    $("bar-numbers").replaceChildren(
      ...[low, middle, high].map((value) => element("span", {}, short(rounded(value + shift), 3))),
    );
  }

  function legend(stage) {
    const mark = (drawing, label) => {
      const span = element("span");
      span.innerHTML = `<svg viewBox="-7 -7 14 14">${drawing}</svg>`;
      span.append(label);
      return span;
    };
    const marks = [mark(`<circle r="4" fill="${BLUE}"/>`, "now")];
    if (stage.points2d_truth)
      marks.push(mark(`<path d="M-6 0H6M0 -6V6" stroke="${ORANGE}" stroke-width="2"/>`, "target"));
    marks.push(
      mark(
        `<path d="M-7 0H0" stroke="#440154" stroke-width="2"/><path d="M0 0H7" stroke="#35b779" stroke-width="2"/>`,
        "way, from dark to bright",
      ),
    );
    return marks;
  }

  // ---- looking closer ----

  /** Say what point number n of the drawn ones is; null for none. */
  function hover(n) {
    const none = n === null || n < 0;
    $("tip").hidden = $("picked").hidden = none;
    if (none) return;
    const { data } = state;
    const frame = data.frames[state.frame];
    const stage = data.stages[frame.stage];
    const i = space.points.index[n];
    const place = Array.from(space.points.position.array.subarray(3 * n, 3 * n + 3));
    const [x, y] = space.onCanvas(...place);
    const lines = [
      `point ${short(i * stage.stride)}`,
      place.map((value, axis) => `${AXES[axis]} ${short(value + stage.centre[axis])}`).join("  "),
    ];
    if (frame.error) {
      const name = frame.error_unit ? "reprojection error" : "distance to truth";
      lines.push(`${name} ${short(frame.error[i], 3)} ${frame.error_unit}`.trim());
    }
    if (stage.views?.length * 3 === frame.points.length) lines.push(`seen in ${plural(stage.views[i], "view")}`);
    $("tip").textContent = lines.join("\n");
    const { clientWidth: width, clientHeight: height } = $("space");
    $("tip").style.left = `${clamp(x + 14, 0, width - $("tip").offsetWidth - 8)}px`;
    $("tip").style.top = `${clamp(y + 14, 0, height - $("tip").offsetHeight - 8)}px`;
    $("picked").style.left = `${x}px`;
    $("picked").style.top = `${y}px`;
  }

  function turnAxes() {
    const lines = [];
    const m = space.camera.matrixWorldInverse.elements;
    AXES.forEach((name, axis) => {
      const [x, y, z] = [m[4 * axis], -m[4 * axis + 1], m[4 * axis + 2]];
      lines.push([
        z,
        `<line x2="${24 * x}" y2="${24 * y}" stroke="${MUTED}" stroke-width="1.5"/>
        <text x="${32 * x}" y="${32 * y}" fill="${MUTED}">${name}</text>`,
      ]);
    });
    $("axes").innerHTML = lines
      .sort((a, b) => a[0] - b[0])
      .map(([, drawing]) => drawing)
      .join("");
  }

  function listenInSpace() {
    const canvas = $("canvas");
    let asked = null;
    space.afterDraw = turnAxes;
    const point = (event) => {
      const bounds = canvas.getBoundingClientRect();
      return space.pick(event.clientX - bounds.left, event.clientY - bounds.top);
    };
    canvas.addEventListener("pointermove", (event) => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(() => hover(event.buttons ? null : point(event)));
    });
    canvas.addEventListener("click", (event) => hover(point(event)));
    canvas.addEventListener("pointerleave", () => hover(null));
    canvas.addEventListener("wheel", () => hover(null), { passive: true });
    canvas.addEventListener("dblclick", (event) => {
      // turn around this point from now on
      const n = point(event);
      if (n < 0) return;
      const place = space.points.position.array.subarray(3 * n, 3 * n + 3);
      space.camera.position.add(new Vector3(...place).sub(space.controls.target));
      space.controls.target.set(...place);
      space.redraw();
    });
    $("fit-points").addEventListener("click", () => space.fit(state.data.stages[state.stage].box));
    $("fit-all").addEventListener("click", () => space.fit(everything()));
    $("color").addEventListener("change", () => {
      state.color = $("color").value;
      show(state.frame);
    });
    $("toggles").addEventListener("change", () => show(state.frame));
    $("size").addEventListener("input", () => {
      space.magnified = 2 ** Number($("size").value);
      space.redraw();
    });
  }

  /** A ball around the points and all cameras of now. */
  function everything() {
    const stage = state.data.stages[state.stage];
    const frame = state.data.frames[state.frame];
    const places = [...stage.box.low, ...stage.box.high];
    for (const cameras of [frame.cameras, stage.cameras_truth]) if (cameras) places.push(...centres(cameras));
    const low = [0, 1, 2].map((axis) => percentiles(places, [0], axis, 3)[0]);
    const high = [0, 1, 2].map((axis) => percentiles(places, [1], axis, 3)[0]);
    const radius = Math.hypot(...low.map((a, axis) => high[axis] - a)) / 2;
    return { centre: low.map((a, axis) => (a + high[axis]) / 2), radius: radius + stage.depth };
  }

  // ---- time ----

  const PLAY = '<svg viewBox="0 0 20 20"><path d="M6 3.5v13l11-6.5z"/></svg>';
  const PAUSE = '<svg viewBox="0 0 20 20"><path d="M5 4h3.5v12H5zM11.5 4H15v12h-3.5z"/></svg>';

  function setButton() {
    $("play").innerHTML = state.playing === null ? PLAY : PAUSE;
    $("play").setAttribute("aria-label", state.playing === null ? "Play" : "Pause");
  }

  function pause() {
    clearTimeout(state.playing);
    state.playing = null;
    setButton();
  }

  function play() {
    if (state.data.frames.length < 2) return;
    const next = () => {
      state.playing = setTimeout(
        () => {
          const end = state.data.frames.length - 1;
          if (state.frame < end) show(state.frame + 1);
          else if ($("loop").checked) show(0);
          if (state.frame === end && !$("loop").checked) pause();
          else next();
        },
        1000 / Number($("speed").value),
      );
    };
    if (state.frame === state.data.frames.length - 1) show(0);
    next();
    setButton();
  }

  const toggle = () => (state.playing === null ? play() : pause());

  function go(i) {
    pause();
    show(i);
  }

  function listenToTime() {
    setButton();
    $("play").addEventListener("click", toggle);
    $("slider").addEventListener("input", () => go(Number($("slider").value)));
    $("stage-choice").addEventListener("change", () =>
      go(state.data.frames.indexOf(state.data.stages[Number($("stage-choice").value)].frames.at(-1))),
    );
    addEventListener("keydown", (event) => {
      if (!state.data?.frames.length || event.ctrlKey || event.metaKey || event.altKey) return;
      const { target: on } = event;
      if (on !== $("slider") && on.matches?.("select, input[type=range]")) return; // it has keys of its own
      if (event.key === " " && on.matches?.("button, input[type=checkbox], summary")) return;
      const moves = {
        ArrowLeft: state.frame - 1,
        ArrowRight: state.frame + 1,
        Home: 0,
        End: state.data.frames.length - 1,
      };
      if (event.key === " ") toggle();
      else if (event.key in moves) go(moves[event.key]);
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => {
      if (state.data?.frames.length && !$("image").hidden)
        drawImage($("image-canvas"), state.data, state.data.frames[state.frame]);
    }).observe($("image"));
  }

  // ---- live ----

  function trouble(words) {
    $("trouble").hidden = !words;
    $("trouble").textContent = words ?? "";
  }

  /** Ask once a second whether there is something new, for as long as the page is open. */
  async function follow(prefix) {
    let version = null;
    let answered = null;
    const ask = async (name) => {
      const response = await fetch(prefix + name, { cache: "no-store" });
      if (!response.ok) throw new Error((await response.text()).slice(0, 300) || response.statusText);
      return response;
    };
    for (;;) {
      let fresh = null;
      try {
        const latest = await (await ask("version")).text();
        if (latest !== version) fresh = await (await ask("recording")).arrayBuffer();
        version = latest;
        answered = new Date();
        trouble(null);
      } catch (error) {
        const since = answered ? ` What you see is as of ${answered.toLocaleTimeString()}.` : "";
        trouble(
          error instanceof TypeError // fetch's, when nobody answers
            ? `The server no longer answers.${since} Start it again, and this page goes on by itself.`
            : `The server could not read the recording: ${error.message}${since}`,
        );
      }
      if (fresh) load(await decode(fresh));
      await new Promise((done) => setTimeout(done, 1000));
    }
  }

  // ---- the start ----

  /**
   * For tests and the curious; read-only but for setFrame.
   * frames, frame, step: how many there are, which is shown, its iteration. positions: [[x, y, z], ...] of the points
   * in the drawn buffer, nan where unknown. screen(i): where point i is on the page, px. draws: how often space was
   * drawn.
   */
  window.viewer = Object.freeze({
    get frames() {
      return state.data ? state.data.frames.length : 0;
    },
    get frame() {
      return state.frame;
    },
    get step() {
      return state.data?.frames[state.frame]?.step;
    },
    get draws() {
      return space?.draws ?? 0;
    },
    get positions() {
      const out = Array.from({ length: space.points.total }, () => [NaN, NaN, NaN]);
      for (let n = 0; n < space.points.count; n++) {
        out[space.points.index[n]] = state.data.stages[state.stage].centre.map(
          (c, axis) => c + space.points.position.array[3 * n + axis],
        );
      }
      return out;
    },
    screen(i) {
      const n = space.points.index.subarray(0, space.points.count).indexOf(i);
      const bounds = $("canvas").getBoundingClientRect();
      const [x, y] = space.onCanvas(...space.points.position.array.subarray(3 * n, 3 * n + 3));
      return [bounds.left + x, bounds.top + y];
    },
    setFrame: go,
  });

  document.head.append(element("style", {}, vendor.uPlotStyle));
  if (space) listenInSpace();
  listenToTime();
  const live = document.body.dataset.live;
  if (live) follow(live);
  else {
    const embedded = $("data");
    const letters = atob(embedded.textContent);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
    decode(bytes).then(load);
    embedded.remove(); // megabytes of text
  }
})();
