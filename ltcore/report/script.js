"use strict";
// The confusion matrices: drawn on a canvas from the page's data, because a thousand classes are a million cells.

const WIDEST = 104; // pixels left and above, for the classes' names: at most so many
const NARROWEST = 76; // for what the sides are
const FONT = "11px sans-serif";
const PRINTED = 3; // pixels of paper for one of the screen
const FEWEST = 4; // cells a side when zoomed in as far as it goes

class Matrix {
  constructor(box, run) {
    this.canvas = box.querySelector("canvas");
    this.said = box.querySelector(".cell");
    const ordered = (values) => run.order.map((label) => values[label]);
    [this.names, this.labels, this.counts] = [run.result.class_names, run.labels, run.result.class_counts].map(ordered);
    this.size = run.order.length;
    const rank = Object.fromEntries(run.order.map((label, place) => [label, place]));
    this.cells = run.confusion.map(([target, said, images]) => [rank[target], rank[said], images]);
    this.images = new Map(this.cells.map(([row, column, images]) => [row * this.size + column, images]));
    this.totals = new Array(this.size).fill(0);
    for (const [row, , images] of this.cells) this.totals[row] += images;
    this.cursor = null;
    const pen = this.canvas.getContext("2d");
    pen.font = FONT;
    const widest = this.labels.reduce((wide, label) => Math.max(wide, pen.measureText(label).width), 0);
    this.margin = Math.min(Math.max(Math.ceil(widest) + 10, NARROWEST), WIDEST);
    this.view = { x: 0, y: 0, span: this.size };
    this.listen(box);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  listen(box) {
    const canvas = this.canvas;
    const acts = { in: () => this.zoom(0.5), out: () => this.zoom(2), whole: () => this.whole() };
    const keys = {
      ArrowLeft: () => this.step(0, -1), ArrowRight: () => this.step(0, 1), ArrowUp: () => this.step(-1, 0),
      ArrowDown: () => this.step(1, 0), "+": acts.in, "=": acts.in, "-": acts.out, 0: acts.whole,
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return; // the browser's own keys
      keys[event.key]();
      event.preventDefault();
    });
    for (const button of box.querySelectorAll("[data-act]")) button.addEventListener("click", acts[button.dataset.act]);
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      this.point(event);
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8);
    }, { passive: false });
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.offsetX, y: event.offsetY, view: { ...this.view } };
      canvas.setPointerCapture(event.pointerId);
      this.point(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return this.point(event);
      this.view.x = from.view.x - (event.offsetX - from.x) / this.pixels();
      this.view.y = from.view.y - (event.offsetY - from.y) / this.pixels();
      this.draw();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { from = null; });
    for (const media of ["print", "(prefers-color-scheme: dark)"]) {
      matchMedia(media).addEventListener("change", () => this.draw());
    }
  }

  // Pixels a side of a cell.
  pixels() {
    return (this.canvas.clientWidth - this.margin) / this.view.span;
  }

  // The cell under a pointer becomes the cursor.
  point(event) {
    const column = Math.floor(this.view.x + (event.offsetX - this.margin) / this.pixels());
    const row = Math.floor(this.view.y + (event.offsetY - this.margin) / this.pixels());
    if (event.offsetX < this.margin || event.offsetY < this.margin || row >= this.size || column >= this.size) return;
    this.choose(row, column);
  }

  step(down, right) {
    if (!this.cursor) return this.choose(0, 0);
    const within = (place) => Math.min(Math.max(place, 0), this.size - 1);
    const row = within(this.cursor.row + down);
    const column = within(this.cursor.column + right);
    const { view } = this;
    view.x = Math.min(Math.max(view.x, column + 1 - view.span), column);
    view.y = Math.min(Math.max(view.y, row + 1 - view.span), row);
    this.choose(row, column);
  }

  choose(row, column) {
    this.cursor = { row, column };
    const images = this.images.get(row * this.size + column) || 0;
    const total = this.totals[row];
    const share = total ? ` (${(100 * images / total).toFixed(1)} %)` : "";
    const same = row === column ? "are recognised" : `are taken for ${this.names[column]}`;
    this.said.textContent =
      `${this.names[row]} (${this.counts[row]} training images): ${images} of ${total} test images${share} ${same}` +
      (row === column ? "" : ` (${this.counts[column]} training images)`);
    this.draw();
  }

  // The cursor's cell stays in its place, or the middle does.
  zoom(factor) {
    const { view, cursor } = this;
    const span = Math.min(Math.max(view.span * factor, Math.min(FEWEST, this.size)), this.size);
    const fix = (start, place) => place - (place - start) * (span / view.span);
    view.x = fix(view.x, cursor ? cursor.column + 0.5 : view.x + view.span / 2);
    view.y = fix(view.y, cursor ? cursor.row + 0.5 : view.y + view.span / 2);
    view.span = span;
    this.draw();
  }

  whole() {
    this.view = { x: 0, y: 0, span: this.size };
    this.draw();
  }

  draw() {
    const { canvas, view, size, margin } = this;
    const side = canvas.clientWidth;
    if (!side) return;
    view.x = Math.min(Math.max(view.x, 0), size - view.span);
    view.y = Math.min(Math.max(view.y, 0), size - view.span);
    canvas.style.touchAction = view.span < size ? "none" : "pan-y";
    const scale = matchMedia("print").matches ? PRINTED : window.devicePixelRatio || 1;
    canvas.width = Math.round(side * scale);
    canvas.height = Math.round(side * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(name).trim();
    const step = this.pixels();
    const place = (at, start) => margin + (at - start) * step;
    pen.font = FONT;
    pen.textBaseline = "middle";

    pen.save();
    pen.beginPath();
    pen.rect(margin, margin, side - margin, side - margin);
    pen.clip();
    pen.textAlign = "center";
    const drawn = Math.max(step, 1.5); // a single cell among a thousand must still be seen
    for (const [row, column, images] of this.cells) {
      const x = place(column, view.x);
      const y = place(row, view.y);
      if (x + drawn < margin || y + drawn < margin || x > side || y > side) continue;
      const share = images / this.totals[row];
      pen.globalAlpha = 0.12 + 0.88 * share;
      pen.fillStyle = color("--cell");
      pen.fillRect(x, y, drawn, drawn);
      pen.globalAlpha = 1;
      if (step < 26) continue;
      pen.fillStyle = color(share > 0.5 ? "--paper" : "--ink");
      pen.fillText((100 * share).toFixed(share < 0.0995 ? 1 : 0), x + step / 2, y + step / 2);
    }
    if (this.cursor) {
      pen.strokeStyle = color("--s1");
      pen.lineWidth = 2;
      const wide = Math.max(step, 5);
      const half = (wide - step) / 2;
      pen.strokeRect(place(this.cursor.column, view.x) - half, place(this.cursor.row, view.y) - half, wide, wide);
    }
    pen.restore();
    pen.strokeStyle = color("--quiet");
    pen.strokeRect(margin, margin, side - margin, side - margin);
    this.label(pen, color("--ink"), color("--quiet"), step, place);
  }

  // Names of the classes along both sides, as many as there is room for.
  label(pen, ink, quiet, step, place) {
    const every = Math.max(1, Math.ceil(13 / step));
    pen.fillStyle = ink;
    for (const [start, side] of [[this.view.y, "right"], [this.view.x, "left"]]) {
      for (let at = Math.ceil(start / every) * every; at < Math.min(start + this.view.span, this.size); at += every) {
        const middle = Math.min(place(at + 0.5, start), this.canvas.clientWidth - 7); // the last one is whole
        if (middle < this.margin) continue;
        pen.save();
        if (side === "right") pen.translate(this.margin - 5, middle);
        else pen.transform(0, -1, 1, 0, middle, this.margin - 5); // upwards
        pen.textAlign = side;
        pen.fillText(this.labels[at], 0, 0, this.margin - 8);
        pen.restore();
      }
    }
    pen.fillStyle = quiet;
    pen.textAlign = "left";
    pen.fillText("predicted →", 4, 14);
    pen.fillText("class ↓", 4, 30);
  }
}

const report = JSON.parse(document.getElementById("report-data").textContent);
for (const box of document.querySelectorAll(".confusion")) new Matrix(box, report.runs[box.dataset.run]);
