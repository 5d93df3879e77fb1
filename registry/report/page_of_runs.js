(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("numbers").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (run) => css(`--line-${run % 8}`);
  const hosts = [...document.querySelectorAll(".chart")];
  let against = "kimg";
  let plots = [];

  const seconds = (s) => {
    if (s < 120) return `${Math.round(s)} s`;
    if (s < 7200) return `${+(s / 60).toFixed(1)} min`;
    return `${+(s / 3600).toFixed(1)} h`;
  };
  const number = (v) => (v == null ? "" : Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(2) : `${+v.toPrecision(4)}`);

  // The next of 1, 2, 5, 10, 20 … below a value, or above it if the value is given as negative.
  function round(value) {
    const size = 10 ** Math.floor(Math.log10(Math.abs(value)));
    const steps = [1, 2, 5, 10].map((step) => step * size);
    const found = value < 0 ? steps.find((step) => step >= -value) : steps.reverse().find((step) => step <= value);
    return found === undefined ? value : Math.sign(value) * found; // undefined only by rounding, next to a power of ten
  }

  // Every curve on one axis of x: uPlot wants a value or a gap of each at all of them.
  function aligned(curves) {
    const tables = curves.map((c) => [c[against], c.y]);
    return tables.length === 1 ? tables[0] : uPlot.join(tables);
  }

  // What is painted over a plot, in the colour and size of a note.
  function overlay(paint) {
    const draw = (u) => {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.strokeStyle = ctx.fillStyle = css("--soft");
      const line = (x0, y0, x1, y1) => {
        ctx.beginPath();
        ctx.moveTo(x0, y0);
        ctx.lineTo(x1, y1);
        ctx.stroke();
      };
      paint(u, ctx, bbox, line);
      ctx.restore();
    };
    return { hooks: { draw: [draw] } };
  }

  // Lines may be close to each other: the highest is named above it, the others below, at the two ends in turn.
  const levels = (chart) =>
    overlay((u, ctx, bbox, line) => {
      ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
      [...chart.levels].sort((a, b) => b[1] - a[1]).forEach(([name, value], i) => {
        const y = u.valToPos(value, "y", true);
        if (y < bbox.top || y > bbox.top + bbox.height) return;
        line(bbox.left, y, bbox.left + bbox.width, y);
        ctx.textAlign = i % 2 ? "left" : "right";
        ctx.textBaseline = i ? "top" : "bottom";
        ctx.fillText(name, i % 2 ? bbox.left + 4 : bbox.left + bbox.width - 4, y + (i ? 3 : -2) * devicePixelRatio);
      });
    });

  // Where the parts of a run begin: a vertical line each, named at its top.
  const marks = () =>
    overlay((u, ctx, bbox, line) => {
      ctx.lineWidth = 0.6 * devicePixelRatio;
      ctx.textBaseline = "top";
      data.marks.forEach((mark, i) => {
        const x = u.valToPos(mark[against], "x", true);
        if (x < bbox.left || x > bbox.left + bbox.width) return;
        line(x, bbox.top, x, bbox.top + bbox.height);
        ctx.textAlign = x > bbox.left + bbox.width * 0.7 ? "right" : "left";
        ctx.fillText(mark.name, x + (ctx.textAlign === "right" ? -4 : 4) * devicePixelRatio, bbox.top + i * 14 * devicePixelRatio);
      });
    });

  // Without a pointer the legend shows the last value of every curve.
  function last(u) {
    if (u.cursor.idx == null && u.data[0].length) u.setLegend({ idx: u.data[0].length - 1 }, false);
  }

  function draw() {
    plots.forEach((plot) => plot.destroy());
    plots = hosts.map((host, i) => {
      const chart = data.charts[i];
      const grid = { stroke: css("--line"), width: 1 };
      const axis = { stroke: css("--soft"), grid, ticks: grid, font: "11px system-ui, sans-serif" };
      const bounds = chart.levels.map((level) => level[1]).filter((v) => !chart.log || v > 0);
      const points = chart.curves.every((c) => c.y.length <= 60);
      return new uPlot(
        {
          width: Math.max(host.clientWidth, 200),
          height: 230,
          legend: { show: true, live: true },
          cursor: { points: { size: 6 } },
          scales: {
            x: { time: false },
            y: {
              distr: chart.log ? 3 : 1,
              range: (u, low, high) => {
                low = Math.min(low, ...bounds);
                high = Math.max(high, ...bounds);
                if (chart.log) return [round(low / 1.2), -round(-high * 1.15)];
                const room = high === low ? Math.abs(high) * 0.1 || 1 : (high - low) * 0.06;
                return [low - room * (bounds.length ? 2.5 : 1), high + room];
              },
            },
          },
          axes: [
            { ...axis, values: (u, ticks) => ticks.map((v) => (against === "kimg" ? number(v) : seconds(v))), space: 70 },
            { ...axis, size: 62, values: (u, ticks) => ticks.map(number) },
          ],
          series: [
            { label: against === "kimg" ? "kimg" : "training", value: (u, v) => (v == null ? "" : against === "kimg" ? number(v) : seconds(v)) },
            ...chart.curves.map((c) => ({
              label: c.label, stroke: colour(c.run), width: 1.6, spanGaps: true, points: { show: points, size: 5 },
              value: (u, v) => number(v),
            })),
          ],
          plugins: [levels(chart), marks()],
          hooks: { ready: [last], setCursor: [last] },
        },
        aligned(chart.curves),
        host,
      );
    });
  }

  document.querySelectorAll("input[name=against]").forEach((input) =>
    input.addEventListener("change", () => {
      against = input.value;
      draw();
    }),
  );
  document.querySelectorAll(".snapshots").forEach((box) => {
    const slider = box.querySelector("input");
    const images = [...box.querySelectorAll("img")];
    const show = () => {
      images.forEach((image, i) => (image.hidden = i !== +slider.value));
      const said = images[+slider.value].dataset.kimg;
      box.querySelector("output").textContent = `${said} kimg`;
      slider.setAttribute("aria-valuetext", `${said} thousand images`);
    };
    slider.addEventListener("input", show);
    show();
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) draw();
    width = innerWidth;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
