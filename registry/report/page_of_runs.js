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

  // Every curve on one axis of x: uPlot wants a value or a gap of each at all of them.
  function aligned(curves) {
    const tables = curves.map((c) => [c[against], c.y]);
    return tables.length === 1 ? tables[0] : uPlot.join(tables);
  }

  function levels(chart) {
    return {
      hooks: {
        draw: [
          (u) => {
            const { ctx, bbox } = u;
            ctx.save();
            ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
            // Lines may be close to each other: the highest is named above it, the others below, at the two ends in turn.
            [...chart.levels].sort((a, b) => b[1] - a[1]).forEach(([name, value], i) => {
              const y = u.valToPos(value, "y", true);
              if (y < bbox.top || y > bbox.top + bbox.height) return;
              ctx.strokeStyle = ctx.fillStyle = css("--soft");
              ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
              ctx.beginPath();
              ctx.moveTo(bbox.left, y);
              ctx.lineTo(bbox.left + bbox.width, y);
              ctx.stroke();
              ctx.textAlign = i % 2 ? "left" : "right";
              ctx.textBaseline = i ? "top" : "bottom";
              ctx.fillText(name, i % 2 ? bbox.left + 4 : bbox.left + bbox.width - 4, y + (i ? 3 : -2) * devicePixelRatio);
            });
            ctx.restore();
          },
        ],
      },
    };
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
                if (chart.log) return low === high ? [low / 2, high * 2] : [low / 1.3, high * 1.15];
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
          plugins: [levels(chart)],
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
