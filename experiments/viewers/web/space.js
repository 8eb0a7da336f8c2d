// Points and line segments in space.

import { clamp, colors, roundAbove } from "./base.js";
import { box } from "./data.js";
import {
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
} from "./libraries.js";

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

/** Line segments of the colour of that name, `width` px wide. */
class Lines {
  constructor(color, width, opacity = 1) {
    this.color = color;
    const material = new LineMaterial({ linewidth: width, transparent: opacity < 1, opacity });
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
        /** @type {any} */
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

export class Space {
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
    this.camera = new PerspectiveCamera(40, 1, 0.1, 100);
    this.scene = new Scene();
    this.points = new Cloud(BALL, false);
    this.truth = new Cloud(RING, true);
    this.grid = new Lines("line", 1);
    this.residuals = new Lines("muted", 1, 0.45);
    this.edges = new Lines("blue", 1.5);
    this.trails = new Lines("blue", 1, 0.4);
    this.camerasTruth = new Lines("orange", 1.25);
    // below the cameras where they coincide
    Object.assign(this.camerasTruth.object.material, { polygonOffset: true, polygonOffsetUnits: 2048 });
    this.cameras = new Lines("blue", 1.5);
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
    this.lines = order.filter((part) => part instanceof Lines);
    this.scene.add(...order.map((part) => part.object));
    this.paint();
    this.pointSize = 1; // in the scene's units
    this.least = 2; // px
    this.magnified = 1; // both of them, as the user wants
    this.reach = 1; // how far from the centre anything is
    this.draws = 0;
    this.afterDraw = () => {};
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    this.resize();
  }

  /** Take the colours that hold now, but for those of points. */
  paint() {
    this.renderer.setClearColor(colors.background);
    for (const lines of this.lines) lines.object.material.color.set(colors[lines.color]);
    this.redraw();
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
    const centre = new Vector3(...stage.box.centre);
    const from = new Vector3(...(box(stage.eyes)?.centre ?? centre)).sub(centre);
    const far = from.length();
    level(from);
    if (from.length() < 0.3 * far || far < 0.3 * stage.box.radius) {
      from.copy(level(new Vector3(0.55, -1, 0)));
      if (from.length() < 0.3) from.copy(level(new Vector3(1, 0.55, 1)));
    }
    this.vantage = from.normalize().applyAxisAngle(this.up, 0.45).addScaledVector(this.up, 0.6).normalize();
    this.camera.position.copy(this.vantage);
  }

  /** Keep the direction of view, and come as close as shows all places, arrays (N,3); turn at the centre's depth. */
  fit(places, centre) {
    this.resize(); // what was just written may have moved everything
    const ahead = this.controls.target.clone().sub(this.camera.position).normalize();
    const right = new Vector3().crossVectors(ahead, this.up).normalize();
    const slope = Math.tan((this.camera.fov * Math.PI) / 360) / 1.15;
    const sides = [
      { side: right, slope: slope * this.camera.aspect, ends: [-Infinity, -Infinity] },
      { side: new Vector3().crossVectors(right, ahead), slope, ends: [-Infinity, -Infinity] },
    ];
    let front = Infinity;
    let back = -Infinity;
    const place = new Vector3();
    for (const some of places) {
      for (let i = 0; i < some.length; i += 3) {
        place.fromArray(some, i);
        const depth = place.dot(ahead);
        front = Math.min(front, depth);
        back = Math.max(back, depth);
        for (const { side, slope, ends } of sides) {
          const off = place.dot(side);
          ends[0] = Math.max(ends[0], off - slope * depth);
          ends[1] = Math.max(ends[1], -off - slope * depth);
        }
      }
    }
    // the eye is where the sides of the view touch the outermost places, but not so near that the front hides the rest
    const least = sides.map(({ slope, ends: [a, b] }) => -(a + b) / (2 * slope));
    const depth = Math.min(front - 0.25 * (back - front), ...least);
    const eye = ahead.clone().multiplyScalar(depth);
    for (const {
      side,
      ends: [a, b],
    } of sides)
      eye.addScaledVector(side, (a - b) / 2);
    this.camera.position.copy(eye);
    this.controls.target.copy(eye).addScaledVector(ahead, new Vector3(...centre).dot(ahead) - depth);
    this.controls.update();
    this.redraw();
  }

  /** Be at `eye` (3,) and look at `target` (3,), and turn around it. */
  look(eye, target) {
    this.camera.position.fromArray(eye);
    this.controls.target.fromArray(target);
    this.controls.update();
    this.redraw();
  }

  /** Squares of a round number of units on the plane below the box; that number. */
  lay({ centre, low, high, radius }) {
    const up = this.up;
    const tops = up.toArray();
    const drop = tops.reduce((sum, u, axis) => sum + (Math.abs(u) * (high[axis] - low[axis])) / 2, 0);
    const unit = roundAbove(radius / 4);
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
