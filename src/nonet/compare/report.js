"use strict";
// Words and axes take their colours from the page's variables; those of methods suit light and dark alike.
const axis = {
  labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--line)", domainColor: "var(--muted)", tickColor: "var(--muted)",
  labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, labelPadding: 5, titlePadding: 8, tickSize: 4,
};
const options = {
  mode: "vega-lite",
  renderer: "svg",
  actions: false,
  config: {
    background: "transparent",
    font: "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif",
    view: { stroke: null },
    axis,
    axisX: { grid: false },
    axisY: { domain: false, ticks: false, titleAngle: 0, titleAlign: "left", titleBaseline: "bottom", titleX: 0, titleY: -9 },
  },
};

async function draw(plot) {
  const spec = JSON.parse(plot.querySelector("script").textContent);
  try {
    const { view } = await vegaEmbed(plot, spec, options);
    return view;
  } catch (error) {
    plot.textContent = "This plot could not be drawn; the tables hold its numbers.";
    throw error;
  }
}

// A press on a method shows it alone in the plots below; another press shows all.
async function drawGallery(gallery) {
  const buttons = gallery.querySelectorAll("button");
  const views = [];
  for (const plot of gallery.querySelectorAll(".plot")) views.push(await draw(plot));
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const picked = button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.method;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other.dataset.method === picked));
      for (const view of views) view.signal("picked", picked).runAsync();
    });
  }
}

async function drawAll() {
  for (const gallery of document.querySelectorAll(".gallery")) await drawGallery(gallery);
  document.documentElement.dataset.drawn = "yes";
}

drawAll();

// Paper cannot be unfolded.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
